"""The benchmarks of the arms and of the simulated person: their figures by hand, and both scripts on the phantoms."""

import json
import runpy
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from samcorrect.lib.core.metrics import dice
from samcorrect.lib.errors import StoreError
from samcorrect.lib.loop import students
from samcorrect.lib.loop.candidates import find_candidates
from samcorrect.lib.loop.cohort import best_labels, load_cohort
from samcorrect.lib.loop.evaluation import GroundTruth
from samcorrect.lib.loop.workspace import open_workspace
from samcorrect.lib.networks.training import Training, train_network
from samcorrect.lib.protocol import load_protocol
from samcorrect.lib.settings import MODULES, Settings
from samcorrect.lib.store.volumes import LPS_TO_RAS, read_label_map

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
COLLAPSE = "after 2 steps it finds nothing"


@pytest.fixture
def options(phantoms, new_state, tmp_path, monkeypatch):
    """Options of a small run on the phantoms, whose embeddings are known."""
    monkeypatch.setenv("SAMCORRECT_STUDENT_SIDE_PX", "32")
    monkeypatch.setenv("SAMCORRECT_STUDENT_BATCH_SIZE", "2")
    monkeypatch.setenv("SAMCORRECT_N_CANDIDATES", "2")
    new_state(tmp_path / "out")
    given = {
        "images": phantoms.images,
        "labels": phantoms.labels,
        "test-images": phantoms.test_images,
        "test-labels": phantoms.test_labels,
        "protocol": phantoms.images / "protocol.yaml",
        "json": tmp_path / "told.json",
        "out": tmp_path / "out",
        "seeds": 0,
        "rounds": 1,
        "student-steps": 2,
    }
    return [word for name, value in given.items() for word in (f"--{name}", str(value))]


def test_the_share_of_a_gap_that_is_recovered_is_told_only_where_there_is_a_gap(module):
    recovered = module("arms").recovered
    floor, ceiling = np.array([0.70, 0.72, 0.74]), np.array([0.90, 0.92, 0.94])
    assert recovered(np.array([0.85, 0.87, 0.89]), floor, ceiling) == pytest.approx(0.75)
    # Ten cases of which half lose what the others win: the interval of the gap holds 0.
    assert recovered(np.full(10, 0.8), np.full(10, 0.7), 0.7 + np.array([-0.1, 0.1] * 5)) is None


def test_differences_and_gaps_are_bootstrapped_over_patients(module):
    common, recovered = module("common"), module("arms").recovered
    of_sites = [f"site{n % 3}/{n}" for n in range(60)]
    cases = common.cases_by_name(f"p{n // 10}/{n}" for n in range(60))
    assert cases == [f"p{n // 10}" for n in range(60)]
    assert common.cases_by_name(of_sites) == of_sites
    floor, won = np.full(60, 0.5), np.repeat([0.3, 0.3, 0.3, 0.3, -0.2, -0.3], 10)
    by_image = common.paired(floor + won, floor, cases=of_sites)
    assert by_image == common.paired(floor + won, floor)
    assert common.paired(floor + won, floor, cases=cases)["ci95"][0] < 0 < by_image["ci95"][0]
    # A gap that six patients do not prove is none.
    assert recovered(floor, floor, floor + won, cases=cases) is None
    assert recovered(floor, floor, floor + won, cases=of_sites) == 0


def test_the_tables_of_all_seeds_have_intervals_over_patients(module):
    arm = {"dice_mean": 0.7, "structures": {}, "is_prompted": False, "prompted": False, "wall_s": 1}

    def widths(image_ids):
        ours = dict(zip(image_ids, np.repeat([0.9, 0.9, 0.9, 0.9, 0.4, 0.4], 10), strict=True))
        case_dice = {"samcorrect": ours, **dict.fromkeys(("huang2023_75", "sam_to_student"), dict.fromkeys(ours, 0.6))}
        noise = {"case_dice": case_dice, **dict.fromkeys(case_dice, 0.7)}
        run = {"case_dice": case_dice, "arms": {"samcorrect": arm}, "ablation": {}, "label_noise": {"0": noise}}
        told = module("arms").over_seeds([run])
        by_hand = {"curves": {"ours": {"0": ours}}, "full_loop": {"ours": ours}}
        approved = module("approvals").over_seeds([by_hand], module("common").cases_by_name(ours))
        intervals = [
            told["arms"]["samcorrect"]["dice_ci95"],
            told["comparisons"]["samcorrect - sam_to_student"]["ci95"],
            told["label_noise"]["0"]["comparisons"]["samcorrect - sam_to_student"]["ci95"],
            approved["curves"]["ours"]["0"]["dice_ci95"],
            approved["full_loop"]["ours"]["dice_ci95"],
        ]
        return np.diff(intervals)

    assert (widths([f"p{n // 10}/{n}" for n in range(60)]) > 2 * widths([f"site{n % 3}/{n}" for n in range(60)])).all()


def test_cases_are_averaged_over_the_seeds_that_have_them(module):
    means = module("common").case_means([{"a": 0.5, "b": None, "c": None}, {"a": 0.7, "b": 0.9, "c": None}])
    assert means[:2] == pytest.approx([0.6, 0.9])
    assert np.isnan(means[2])


def test_a_document_that_cannot_be_written_leaves_the_one_before(module, tmp_path, monkeypatch):
    write_json, path = module("common").write_json, tmp_path / "new" / "told.json"
    write_json(path, {"seeds": 1})

    def write_half(temporary: Path, content: str | bytes, **_how: object) -> None:
        with temporary.open("wb") as handle:
            handle.write((content if isinstance(content, bytes) else content.encode())[:5])
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_bytes", write_half)
    monkeypatch.setattr(Path, "write_text", write_half)
    with pytest.raises(StoreError, match="No space left"):
        write_json(path, {"seeds": 2})
    assert json.loads(path.read_bytes()) == {"seeds": 1}


def test_the_fewest_approvals_that_reach_as_much_by_hand(module):
    n_to_match = module("approvals").n_to_match
    ours = {"0": np.array([0.5, 0.7]), "10": np.array([0.7, 0.9]), "20": np.array([0.9, 0.9])}
    other = {"0": np.array([0.6, 0.6]), "10": np.array([0.7, 0.7]), "20": np.array([0.8, 0.8])}
    assert n_to_match(ours, other) == {"0": 0, "10": 20, "20": None}


def test_a_box_is_shifted_and_scaled_by_the_share_along_every_axis_but_that_of_a_slice(module):
    box = np.array([[10.0, 30.0], [20.0, 60.0], [0.0, 1.0]])
    seen = set()
    for seed in range(200):
        moved = module("noise").shift_box(box, share=0.1, rng=np.random.default_rng(seed))
        middles, sides = moved.mean(1), np.diff(moved)[:, 0]
        assert np.abs(middles - [20, 40, 0.5]) == pytest.approx([2, 4, 0])
        assert np.abs(sides - [20, 40, 1]) == pytest.approx([2, 4, 0])
        seen.add((*np.sign(middles[:2] - [20, 40]), *np.sign(sides[:2] - [20, 40])))
    assert len(seen) == 16
    assert np.array_equal(module("noise").shift_box(box, share=0.0, rng=np.random.default_rng(0)), box)


def test_a_protocol_of_shifted_boxes_prompts_every_image_inside_it(module, phantom_state, phantoms, tmp_path):
    path = module("noise").write_shifted_protocol(phantom_state, tmp_path, share=0.3)
    protocol = load_protocol(path)
    assert (protocol.names, protocol.indices) == (("right blob", "left blob"), (7, 3))
    boxes = {}
    for row in phantom_state.store.ledger.images():
        for structure in protocol.structures:
            box = protocol.box_vox(structure, row.path, (96, 80, 1))
            assert (box[:2, 1] - box[:2, 0] >= 2).all()
            assert box[2].tolist() == [0, 1]
            boxes[row.id, structure.name] = tuple(box.ravel())
    assert len(set(boxes.values())) > 10


def test_shifted_boxes_of_volumes_keep_the_window_and_the_slices_that_a_box_was_drawn_in(module, tmp_path):
    studies = tmp_path / "studies"
    studies.mkdir()
    nib.save(nib.Nifti1Image(np.zeros((40, 50, 6), np.int16), np.eye(4)), studies / "ct.nii.gz")
    flat, deep = "xyxy: [0.2, 0.2, 0.6, 0.6]", "xyz: [[0.2, 0.6], [0.2, 0.6], [0.2, 0.8]]"
    (studies / "protocol.yaml").write_text(
        "window_hu: [-160, 240]\nstructures:\n"
        f"  - {{name: liver, index: 1, prompt: {{source: box, {flat}}}}}\n"
        f"  - {{name: lung, index: 2, window_hu: [-500, 1300], prompt: {{source: box, {deep}}}}}\n",
        encoding="utf-8",
    )
    workspace = open_workspace(studies, Settings(state=tmp_path / "state"))
    workspace.store.rescan()

    protocol = load_protocol(module("noise").write_shifted_protocol(workspace, tmp_path / "boxes", share=0.2))

    workspace.store.ledger.close()
    assert [protocol.window_of(name) for name in protocol.names] == [(-160, 240), (-500, 1300)]
    liver, lung = (protocol.box_vox(structure, "ct.nii.gz", (40, 50, 6)) for structure in protocol.structures)
    assert liver[2].tolist() == [0, 6]
    assert lung[2].tolist() != pytest.approx([1.2, 4.8])


def test_what_is_not_in_an_image_has_no_shifted_box(module, make_studies, tmp_path):
    studies = make_studies("a.png", "b.png")
    (studies / "boxes.csv").write_text(
        "image,label,x0,y0,x1,y1\na.png,lung,2,3,9,8\nb.png,lung,,,,\n", encoding="utf-8"
    )
    (studies / "protocol.yaml").write_text(
        "structures: [{name: lung, index: 1, prompt: {source: boxes_file, path: boxes.csv}}]\n", encoding="utf-8"
    )
    workspace = open_workspace(studies, Settings(state=tmp_path / "state"))
    workspace.store.rescan()

    protocol = load_protocol(module("noise").write_shifted_protocol(workspace, tmp_path / "boxes", share=0.2))

    workspace.store.ledger.close()
    there, absent = (protocol.box_vox(protocol.structures[0], name, (16, 12, 1)) for name in ("a.png", "b.png"))
    assert there.shape == (3, 2)
    assert absent is None


def test_truth_that_is_missing_is_told_and_refused_where_a_person_needs_it(module, phantoms, options, tmp_path, capsys):
    labels = tmp_path / "labels"
    shutil.copytree(phantoms.labels, labels)
    (labels / "case3.png").unlink()
    common = module("common")
    parsed = common.parser_of("").parse_args([*options, "--labels", str(labels)])

    assert "case4" in common.open_truth(parsed)

    assert f"1 image(s) have no ground truth in {labels}: case3.png" in capsys.readouterr().err
    arguments = [*options, "--labels", str(labels), "--approvals", "0", "--loop-approvals", "0"]
    assert common.run_main(lambda: module("approvals").main(arguments)) == 1
    assert "error: 1 image(s) have no ground truth" in capsys.readouterr().err


@pytest.fixture
def phantom_state(phantoms, tmp_path):
    """A workspace over the phantoms without labels."""
    settings = phantoms.settings.model_copy(update={"state": tmp_path / "state"})
    workspace = open_workspace(phantoms.images, settings, cache_dir=phantoms.cache)
    yield workspace
    workspace.store.ledger.close()


def test_without_the_search_there_is_the_box_as_given_alone(phantom_state):
    volume = phantom_state.store.read_image("case0")
    without = phantom_state.with_settings(modules="correct")
    found, alone = (find_candidates(workspace, volume, "case0.png") for workspace in (phantom_state, without))
    assert [len(of.masks) for of in found] == [phantom_state.settings.n_candidates] * 2
    assert [len(of.masks) for of in alone] == [1, 1]
    assert dice(alone[0].masks[0], found[0].masks[0]) > 0.99


def test_a_simulated_person_approves_with_the_truth_in_the_order_of_the_rule(module, phantom_state, phantoms):
    store = phantom_state.store
    for row in store.ledger.images():
        label_map = np.full((96, 80, 1), 3, np.uint8)
        store.save_label_map(row.id, label_map, tag="original", maker="test", affine=LPS_TO_RAS)
    served = module("approvals").approve(phantom_state, "loss", ["case4", "case1"], GroundTruth(phantoms.labels))
    assert next(served) == "case4"
    assert [i for i, row in best_labels(phantom_state).items() if row.tag == "final"] == ["case4"]
    assert list(served) == ["case1"]
    final = store.ledger.latest_label("case4", "final")
    assert np.array_equal(store.read_label(final), read_label_map(phantoms.labels / "case4.png").array)
    assert "why_served" not in final.info
    by_queue = module("approvals").approve(phantom_state, "random", [], GroundTruth(phantoms.labels))
    assert sorted(by_queue) == sorted(f"case{n}" for n in range(10) if n not in (1, 4))


def test_entropy_is_high_where_a_student_with_dropout_is_unsure(module, phantom_state):
    store = phantom_state.store
    for row in store.ledger.images():
        store.save_label_map(row.id, np.zeros((96, 80, 1), np.uint8), tag="original", maker="test", affine=LPS_TO_RAS)
    workspace = phantom_state.with_settings(student_steps=1)
    cohort = load_cohort(workspace, best_labels(workspace))
    values = module("approvals").entropies(workspace, cohort, seed=0)
    assert values.shape == (10,)
    # Of two structures: each at most 1/e.
    assert (values > 0).all()
    assert (values <= 2 / np.e).all()


def test_the_module_queue_of_the_standard_library_is_found_beside_the_benchmark_of_that_name():
    code = "import queue, logging.handlers; print(queue.Queue(1).maxsize)"
    environment = {"PYTHONPATH": str(BENCHMARKS)}
    said = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert (said.stdout, said.stderr) == ("1\n", "")


@pytest.mark.slow
def test_the_arms_of_a_small_run(module, options, tmp_path, monkeypatch):
    def collapse(*given, **more) -> Training:
        return replace(train_network(*given, **more), n_restarts=2, fault=COLLAPSE)

    monkeypatch.setattr(students, "train_network", collapse)
    assert module("arms").main([*options, "--box-noise", "0"]) == 0
    told = json.loads((tmp_path / "told.json").read_text(encoding="utf-8"))
    run = told["seeds"]["0"]
    for table in (told, run):
        assert {"sam_only", "sam_to_student", "sam_search_to_student", "huang2023", "samcorrect", "supervised"} < set(
            table["arms"]
        )
        assert set(table["ablation"]) == {f"without_{name}" for name in MODULES}
        assert not [name for name in table["comparisons"] if "sam_only" in name]
        assert table["arms"]["sam_only"]["is_prompted"]
        # The same rough box for every image knows nothing of the truth.
        assert not any(arm["prompted"] for arm in table["arms"].values())
    trained = [arm for table in ("arms", "ablation") for name, arm in run[table].items() if name != "sam_only"]
    assert {(arm["n_restarts"], arm["fault"]) for arm in trained} == {(2, COLLAPSE)}
    assert "fault" not in run["arms"]["sam_only"]
    assert told["left_out"] == {}
    assert told["arms"]["supervised"]["fault"] == [COLLAPSE]
    assert run["label_noise"]["0"]["students"]["sam_to_student"] == {"n_restarts": 2, "fault": COLLAPSE}
    best = run["arms"]["huang2023"]["chosen"]
    rates = ("huang2023_25", "huang2023_50", "huang2023_75")
    assert best in rates
    assert run["arms"]["huang2023"]["dice_mean"] == max(run["arms"][name]["dice_mean"] for name in rates)
    assert all(arm["hausdorff95_mm_mean"] is None for arm in run["arms"].values())
    assert run["arms"]["sam_only"]["hausdorff95_px_mean"] > 0
    assert run["ablation"]["without_correct"]["stop_reason"] is None
    assert 0 < told["label_dice_before"] <= 1
    assert {"label_dice_chosen", "label_dice_after", "flagged_share", "flagged_recall", "recovered"} <= set(told)
    assert {"pseudo-label", "score", "correct", "retrain", "total"} <= set(run["wall_s"])
    assert told["label_noise"]["0"]["samcorrect"] == pytest.approx(run["arms"]["samcorrect"]["dice_mean"])


@pytest.mark.slow
def test_sam_alone_is_left_out_where_a_test_image_has_no_box(module, options, phantoms, tmp_path, capsys):
    names = [*(f"case{n}" for n in range(10)), "test0", "test2"]
    rows = [f"{name}.png,{label},{x},8,{x + 40},72" for name in names for label, x in (("blob", 4), ("other", 50))]
    (tmp_path / "boxes.csv").write_text("\n".join(["image,label,x0,y0,x1,y1", *rows]), encoding="utf-8")
    prompt = "prompt: {source: boxes_file, path: boxes.csv}"
    structures = f"- {{name: blob, index: 7, {prompt}}}\n- {{name: other, index: 3, {prompt}}}\n"
    (tmp_path / "boxes.yaml").write_text(f"structures:\n{structures}", encoding="utf-8")
    arms = ["--arms", "sam_only", "sam_to_student", "--protocol", str(tmp_path / "boxes.yaml")]

    assert module("arms").main([*options, *arms]) == 0

    told, said = json.loads((tmp_path / "told.json").read_text(encoding="utf-8")), capsys.readouterr()
    assert list(told["arms"]) == list(told["seeds"]["0"]["arms"]) == ["sam_to_student"]
    assert told["arms"]["sam_to_student"]["n"] == 3
    assert told["left_out"]["sam_only"].startswith("SAM cannot be prompted on 1 of 3 images; the first: test1.png: ")
    # Before anything is labelled or trained.
    assert said.err.startswith(f"sam_only is left out: {told['left_out']['sam_only']}\n")


@pytest.mark.slow
def test_the_simulated_person_of_a_small_run(options, tmp_path, monkeypatch):
    plot = tmp_path / "curve.png"
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    more = [
        "--rules",
        "ours",
        "loss",
        "--approvals",
        "0",
        "2",
        "40",
        "--loop-approvals",
        "2",
        "--loop-rules",
        "ours",
        "--plot",
        str(plot),
    ]
    monkeypatch.setattr(sys, "argv", ["queue.py", *options, *more])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(BENCHMARKS / "queue.py"), run_name="__main__")
    assert ended.value.code == 0
    told = json.loads((tmp_path / "told.json").read_text(encoding="utf-8"))
    # There are ten images, so nobody approves forty.
    assert {rule: set(curve) for rule, curve in told["curves"].items()} == {"ours": {"0", "2"}, "loss": {"0", "2"}}
    assert len({curve["0"]["dice_mean"] for curve in told["curves"].values()}) == 1
    assert set(told["full_loop"]) == {"nobody", "ours"}
    assert told["full_loop"]["ours"]["n"] == 3
    assert plot.read_bytes().startswith(b"\x89PNG")
