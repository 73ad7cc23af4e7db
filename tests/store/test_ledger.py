"""The ledger: what it keeps, who gets which image, and several processes at once."""

import subprocess
import sys
import threading

import pytest
from sqlalchemy import text

from samcorrect.lib.errors import UnknownImageError
from samcorrect.lib.store.ledger import Ledger
from samcorrect.lib.store.schema import (
    MODEL_CANDIDATE,
    MODEL_PROMOTED,
    MODEL_REFUSED,
    MODEL_RETIRED,
    LabelVersionRow,
    ModelRow,
    QualityRow,
)
from samcorrect.lib.store.studies import ImageFile

NOW = 1_000_000.0


@pytest.fixture
def ledger(tmp_path, ledger_url):
    ledger = Ledger(tmp_path / "state", ledger_url)
    ledger.sync_images([ImageFile(name, f"{name}.png", name) for name in ("a", "b", "c", "d")])
    yield ledger
    ledger.close()


def label_row(image_id: str, tag: str = "original", **columns: object) -> LabelVersionRow:
    values = {"maker": "test", "path": "labels/x", "content_sha256": "0" * 64, "created_at": NOW, **columns}
    return LabelVersionRow(image_id=image_id, tag=tag, **values)


def quality_row(label: LabelVersionRow, score: float | None, structure_index: int = 0) -> QualityRow:
    return QualityRow(label_version_id=label.id, structure_index=structure_index, score=score, created_at=NOW)


FOUR_PROCESSES = """
context = multiprocessing.get_context("fork")
processes = [context.Process(target=work, args=(number,)) for number in range(4)]
for process in processes:
    process.start()
for process in processes:
    process.join()
sys.exit(any(process.exitcode for process in processes))
"""
IMPORTS = """
import multiprocessing, sys
from pathlib import Path
from samcorrect.lib.store.ledger import Ledger
from samcorrect.lib.store.schema import LabelVersionRow, QualityRow
from samcorrect.lib.store.studies import ImageFile
"""


def run_in_four_processes(work: str, url: str | None, *arguments: str) -> str:
    """Run the function `work(number)` in four processes at once; none of them shares a connection with this one."""
    command = [sys.executable, "-c", f"{IMPORTS}\nURL = {url!r}\n{work}{FOUR_PROCESSES}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


# Images


def test_images_come_in_order_of_id_and_new_paths_are_noted(ledger):
    ledger.sync_images([ImageFile("B2", "B2.png", "B2"), ImageFile("a", "a.nii", "a")])
    assert [row.id for row in ledger.images()] == ["B2", "a", "b", "c", "d"]
    assert ledger.image("a").path == "a.nii"


def test_an_unknown_image_is_named(ledger):
    with pytest.raises(UnknownImageError, match="no image 'x' in the store"):
        ledger.image("x")
    with pytest.raises(UnknownImageError, match="no image 'x' in the store"):
        ledger.take_lease("x", "ann", now=NOW, lease_s=60)


def test_a_file_refused_by_name_is_quarantined_until_it_is_gone(ledger):
    found = [ImageFile(image_id, f"{image_id}.png", image_id) for image_id in "abcd"]
    ledger.sync_images(found, [("ü.png", "not an id"), ("a.png", "same id")])
    assert ledger.quarantined() == [("a.png", "same id"), ("ü.png", "not an id")]
    ledger.release_from_quarantine()
    assert len(ledger.quarantined()) == 2
    ledger.sync_images([ImageFile("e", "e.png", "e")])  # one upload says nothing of the others
    assert len(ledger.quarantined()) == 2
    ledger.sync_images([*found, ImageFile("e", "e.png", "e")], [("a.png", "same id")])
    assert ledger.quarantined() == [("a.png", "same id")]


def test_a_refused_file_with_the_id_of_an_image_does_not_hinder_it(ledger):
    # a.nii.gz is "a", so a.png is refused; a.png.png is the image "a.png".
    found = [ImageFile("a", "a.nii.gz", "a"), ImageFile("a.png", "a.png.png", "a.png")]
    ledger.sync_images(found, [("a.png", "same id as a.nii.gz")])
    assert ledger.image("a.png").path == "a.png.png"
    assert "a.png" not in dict(ledger.quarantined())


def test_an_image_whose_file_is_gone_is_set_aside_until_it_is_back(ledger):
    a = ImageFile("a", "a.png", "a")
    ledger.sync_images([a])  # one upload says nothing of the others
    assert len(ledger.images()) == 4
    ledger.sync_images([a], [])
    assert [row.id for row in ledger.images()] == ["a"]
    assert [image_id for image_id, _ in ledger.quarantined()] == ["b", "c", "d"]
    ledger.release_from_quarantine()
    assert [row.id for row in ledger.images()] == ["a"]
    ledger.quarantine("a", "truncated")
    ledger.sync_images([a, ImageFile("b", "b.png", "b")], [])
    assert [row.id for row in ledger.images()] == ["b"]  # a is there, and still truncated


def test_a_quarantined_image_is_in_no_stage_until_it_is_released(ledger):
    ledger.quarantine("b", "truncated")
    assert [row.id for row in ledger.images()] == ["a", "c", "d"]
    assert [row.id for row in ledger.queue_head("ann", 9, now=NOW)] == ["a", "c", "d"]
    assert ledger.quarantined() == [("b", "truncated")]
    ledger.release_from_quarantine()
    assert [row.id for row in ledger.images()] == ["a", "b", "c", "d"]
    assert ledger.image("b").reason is None


# Labels


def test_the_best_label_is_a_persons_else_the_newest_of_the_machines(ledger):
    assert ledger.best_label("a") is None
    rows = [ledger.add_label(label_row("a", tag)) for tag in ("original", "original", "corrected")]
    assert ledger.best_label("a").id == rows[2].id
    # An original made after the correction, by another protocol or imported, is not hidden by it.
    newer = ledger.add_label(label_row("a", "original"))
    assert ledger.best_label("a").id == newer.id
    final = [ledger.add_label(label_row("a", "final")) for _ in range(2)]
    ledger.add_label(label_row("a", "corrected"))
    assert ledger.best_label("a").id == final[1].id
    assert ledger.latest_label("a", "original").id == newer.id
    assert ledger.latest_label("b", "original") is None
    newest = ledger.latest_labels()
    assert {key: row.id for key, row in newest.items()} == {
        ("a", "corrected"): final[1].id + 1,
        ("a", "original"): newer.id,
        ("a", "final"): final[1].id,
    }


def test_a_final_label_approves_its_image_alone_and_ends_its_lease(ledger):
    assert ledger.take_lease("a", "ann", now=NOW, lease_s=60)
    assert ledger.take_lease("b", "ann", now=NOW, lease_s=60)
    ledger.add_label(label_row("a", "corrected"))
    assert not ledger.image("a").is_approved
    ledger.add_label(label_row("a", "final"))
    assert ledger.image("a").is_approved
    assert not ledger.image("b").is_approved
    assert ledger.held_by("ann", now=NOW) == ["b"]
    assert [row.id for row in ledger.queue_head("ann", 9, now=NOW)] == ["b", "c", "d"]


def test_an_image_approved_in_the_meantime_cannot_be_leased(ledger):
    ledger.add_label(label_row("a", "final"))
    assert not ledger.take_lease("a", "ann", now=NOW, lease_s=60)
    assert ledger.held_by("ann", now=NOW) == []


def test_a_label_of_an_unknown_image_is_not_entered(ledger):
    with pytest.raises(Exception, match=r"(?i)foreign.key"):
        ledger.add_label(label_row("x"))
    assert ledger.latest_labels() == {}


def test_the_label_that_a_run_made_in_a_round_is_its_checkpoint(ledger):
    run, _ = ledger.open_run("digest", {}, {"key": "", "labels": {}})
    made = ledger.add_label(label_row("a", run_id=run.id, round=1))
    ledger.add_label(label_row("a", run_id=run.id, round=2))
    assert ledger.run_label("a", "original", run.id, 1).id == made.id
    assert ledger.run_label("a", "original", run.id, 3) is None
    assert ledger.run_label("b", "original", run.id, 1) is None


# Quality and queue


def test_unscored_images_come_first_then_the_worst_score_then_the_id(ledger):
    for image_id, score in (("a", 0.9), ("b", 0.2), ("d", 0.2)):
        label = ledger.add_label(label_row(image_id))
        ledger.set_quality(label.id, [quality_row(label, score), quality_row(label, 0.01, structure_index=1)])
    assert [row.id for row in ledger.queue_head("ann", 9, now=NOW)] == ["c", "b", "d", "a"]
    assert [row.id for row in ledger.queue_head("ann", 2, now=NOW)] == ["c", "b"]


def test_an_undefined_score_is_no_rank(ledger):
    label = ledger.add_label(label_row("a"))
    ledger.set_quality(label.id, [quality_row(label, float("nan"))])
    assert ledger.image("a").queue_score is None
    assert ledger.quality(label.id)[0].score is None


def test_quality_is_replaced_as_a_whole(ledger):
    label = ledger.add_label(label_row("a"))
    assert ledger.quality(label.id) == {}
    ledger.set_quality(label.id, [quality_row(label, 0.5), quality_row(label, 0.4, structure_index=2)])
    ledger.set_quality(label.id, [quality_row(label, 0.7)])
    assert {index: row.score for index, row in ledger.quality(label.id).items()} == {0: 0.7}
    assert ledger.image("a").queue_score == 0.7


def test_a_lease_keeps_others_away_until_it_expires(ledger):
    assert ledger.take_lease("a", "ann", now=NOW, lease_s=60)
    assert not ledger.take_lease("a", "bob", now=NOW + 59, lease_s=60)
    assert [row.id for row in ledger.queue_head("bob", 1, now=NOW + 59)] == ["b"]
    assert [row.id for row in ledger.queue_head("ann", 1, now=NOW + 59)] == ["a"]
    assert ledger.held_by("bob", now=NOW) == []
    assert ledger.take_lease("a", "ann", now=NOW + 30, lease_s=60)  # her own is made longer
    assert not ledger.take_lease("a", "bob", now=NOW + 61, lease_s=60)
    assert ledger.held_by("ann", now=NOW + 90) == []
    assert ledger.take_lease("a", "bob", now=NOW + 90, lease_s=60)
    assert ledger.held_by("bob", now=NOW + 91) == ["a"]
    assert not ledger.take_lease("a", "ann", now=NOW + 91, lease_s=60)


def test_the_random_order_is_fixed_when_an_image_comes_and_leaves_out_who_is_not_in_the_queue(ledger):
    order = [row.id for row in ledger.queue_random("ann", 9, now=NOW)]
    assert sorted(order) == ["a", "b", "c", "d"]
    ledger.take_lease(order[0], "bob", now=NOW, lease_s=60)
    ledger.add_label(label_row(order[2], "final"))
    assert [row.id for row in ledger.queue_random("ann", 9, now=NOW)] == [order[1], order[3]]
    ledger.sync_images([ImageFile(f"i{n}", f"i{n}.png", f"i{n}") for n in range(200)])
    later = [row.id for row in ledger.queue_random("bob", 300, now=NOW)]
    assert later != sorted(later)
    assert len({row.draw for row in ledger.images()}) == 204


def test_why_an_image_was_served_is_kept_with_the_label_that_approves_it(ledger):
    ledger.take_lease("a", "ann", now=NOW, lease_s=60, why="audit")
    assert ledger.add_label(label_row("a", "final")).info["why_served"] == "audit"
    assert "why_served" not in (ledger.add_label(label_row("b", "final")).info or {})


def test_of_many_threads_one_gets_the_image(ledger):
    barrier, winners = threading.Barrier(8), []

    def take(holder: str) -> None:
        barrier.wait()
        if ledger.take_lease("a", holder, now=NOW, lease_s=60):
            winners.append(holder)

    threads = [threading.Thread(target=take, args=(f"holder {number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(winners) == 1
    assert ledger.held_by(winners[0], now=NOW) == ["a"]


# Models and runs


def test_promotion_retires_the_model_before_and_refusal_keeps_it(ledger):
    models = [
        ledger.add_model(
            ModelRow(digest=d * 64, path=f"models/{d}", status=MODEL_CANDIDATE, created_at=NOW, metrics={})
        )
        for d in "123"
    ]
    assert ledger.promoted_model() is None
    ledger.decide_model(models[0].id, is_promoted=True, metrics={"dice": 0.8})
    ledger.decide_model(models[1].id, is_promoted=True, metrics={"dice": 0.9})
    ledger.decide_model(models[2].id, is_promoted=False, metrics={"dice": 0.7})
    assert ledger.promoted_model().id == models[1].id
    assert [row.status for row in ledger.models()] == [MODEL_RETIRED, MODEL_PROMOTED, MODEL_REFUSED]
    assert ledger.models()[2].metrics == {"dice": 0.7}
    again = ModelRow(digest="1" * 64, path="models/other", status=MODEL_CANDIDATE, created_at=NOW)
    assert ledger.add_model(again).id == models[0].id


def snapshot_of(**labels: int) -> dict:
    return {"key": str(labels), "labels": labels}


def test_a_run_is_taken_up_until_it_is_finished_and_then_only_for_the_same_snapshot(ledger):
    run, was_there = ledger.open_run("digest", {"rounds": 2}, snapshot_of(a=1))
    assert not was_there
    ledger.update_run(run.id, progress={"round": 1})
    ledger.update_run(run.id, progress={"stage": "score"})
    assert ledger.run(run.id).progress == {"round": 1, "stage": "score"}
    # An approval in the meantime does not lose what is done.
    assert ledger.open_run("digest", {"rounds": 2}, snapshot_of(a=2))[0].id == run.id
    assert ledger.open_run("other", {}, snapshot_of(a=1))[0].id != run.id
    ledger.update_run(run.id, is_finished=True)
    assert ledger.open_run("digest", {"rounds": 2}, snapshot_of(a=1))[0].id == run.id
    assert ledger.open_run("digest", {"rounds": 2}, snapshot_of(a=2))[0].id != run.id


def test_an_unfinished_run_of_other_images_is_not_taken_up(ledger):
    run, _ = ledger.open_run("digest", {}, snapshot_of())  # all images were set aside, and are repaired now
    repaired, was_there = ledger.open_run("digest", {}, snapshot_of(a=1, b=2))
    assert (repaired.id != run.id, was_there) == (True, False)


def test_counts(ledger):
    ledger.add_label(label_row("a"))
    label = ledger.add_label(label_row("a"))
    ledger.set_quality(label.id, [quality_row(label, 0.5)])
    ledger.add_label(label_row("b", "final"))
    ledger.quarantine("d", "broken")
    assert ledger.counts() == {"images": 3, "approved": 1, "scored_waiting": 1, "tag_original": 1, "tag_final": 1}


# Several processes at once

WRITE = """
def work(me):
    ledger = Ledger(Path(sys.argv[1]), URL)
    for number in range(50):
        row = LabelVersionRow(image_id="abcd"[number % 4], tag="original", maker=str(me), path="x")
        row.content_sha256, row.created_at = "0", 0
        ledger.add_label(row)
        quality = QualityRow(label_version_id=row.id, structure_index=0, score=number / 50, created_at=0)
        ledger.set_quality(row.id, [quality])
        ledger.update_label_notes(int(sys.argv[2]), {f"{me}-{number}": number})
"""


def test_four_processes_that_write_at_once_lose_nothing(ledger):
    shared = ledger.add_label(label_row("a"))
    run_in_four_processes(WRITE, ledger.url, str(ledger.state_dir), str(shared.id))
    with ledger.session() as session:
        by_maker = dict(
            session.execute(text("select maker, count(*) from label_version group by maker")).tuples().all()
        )
        n_scored = session.scalar(text("select count(*) from quality"))
        if ledger.url is None:
            assert session.scalar(text("pragma integrity_check")) == "ok"
    assert by_maker == {"test": 1, "0": 50, "1": 50, "2": 50, "3": 50}
    assert n_scored == 200
    assert ledger.latest_label("a", "original").id > shared.id
    with ledger.session() as session:
        info = session.get_one(LabelVersionRow, shared.id).info["viewer"]
    assert info == {f"{me}-{number}": number for me in range(4) for number in range(50)}


OPEN = """
def work(me):
    for number in range(5):
        ledger = Ledger(Path(sys.argv[1]) / str(number), URL)
        images = [ImageFile(f"image {n}", f"{n}.png", f"image {n}") for n in range(50)]
        ledger.sync_images(images, [("ü.png", "not an id")])
        ledger.open_run("digest", {}, {"key": "50", "labels": {}})
        ledger.close()
"""


def test_processes_that_make_one_ledger_at_once_make_it_once(tmp_path):
    run_in_four_processes(OPEN, None, str(tmp_path))
    for number in range(5):
        ledger = Ledger(tmp_path / str(number))
        assert len(ledger.images()) == 50
        assert ledger.quarantined() == [("ü.png", "not an id")]
        run, was_there = ledger.open_run("digest", {}, {"key": "50", "labels": {}})
        assert (run.id, was_there) == (1, True)


LEASE = """
def work(me):
    ledger = Ledger(Path(sys.argv[1]), URL)
    got = [f"i{n}" for n in range(40) if ledger.take_lease(f"i{n}", str(me), now=1.0, lease_s=60)]
    sys.stdout.write(f"{me}: {' '.join(got)}\\n")
"""


def test_no_two_processes_get_one_image(tmp_path, ledger_url):
    ledger = Ledger(tmp_path, ledger_url)
    ledger.sync_images([ImageFile(f"i{n}", f"{n}.png", f"i{n}") for n in range(40)])
    lines = run_in_four_processes(LEASE, ledger_url, str(tmp_path)).splitlines()
    taken = {holder: images.split() for holder, images in (line.split(":") for line in lines)}
    assert sorted(taken) == ["0", "1", "2", "3"]
    assert sorted(image for images in taken.values() for image in images) == sorted(f"i{n}" for n in range(40))
    for holder, images in taken.items():
        assert sorted(ledger.held_by(holder, now=2.0)) == sorted(images)


def test_rows_outlive_their_session_and_a_second_ledger_sees_them(ledger):
    label = ledger.add_label(label_row("a", prompts={"box": [1, 2]}, info={"ü": 1}))
    other = Ledger(ledger.state_dir, ledger.url)
    seen = other.best_label("a")
    assert (seen.id, seen.prompts, seen.info) == (label.id, {"box": [1, 2]}, {"ü": 1})
    other.close()
