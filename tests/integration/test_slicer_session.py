"""A Slicer session against a live server, driven by the client.py of the Slicer extension in the monailabel wheel."""

import importlib.util
import re
import sys
import time
from pathlib import Path
from urllib.parse import quote_plus

import nibabel as nib
import numpy as np
import pytest
import requests
from PIL import Image
from slicer_views import (
    BAR,
    DISC,
    assert_on_grid,
    assert_shows_phantom,
    bad_label,
    dice,
    slicer_segments,
    truth,
    write_nifti,
)

from samcorrect.lib.store.volumes import read_image

pytestmark = pytest.mark.slow

CLIENT = Path(sys.prefix) / "monailabel" / "plugins" / "slicer" / "MONAILabel" / "MONAILabelLib" / "client.py"
TASK_TIMEOUT_S = 300
# What MONAILabelLogic.infer adds to every request (MONAILabel.py:2381).
SLICER = {"result_extension": ".nrrd", "result_dtype": "uint8"}


@pytest.fixture(scope="module")
def client_module():
    """Slicer's own client, from the installation of the host."""
    spec = importlib.util.spec_from_file_location("slicer_client", CLIENT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def labelled(served, served_cwd):
    """The server once batch inference has made a pseudo-label of every image."""
    reply = requests.post(f"{served}/batch/infer/sam", timeout=60)
    assert reply.status_code == 200, f"{reply.text}\n{(served_cwd / 'server.log').read_text(encoding='utf-8')[-4000:]}"
    task = wait_until_done(f"{served}/batch/infer")
    assert task["status"] == "DONE", task["details"]
    told = requests.get(f"{served}/info/", timeout=60).json()["datastore"]
    assert told == {"total": 11, "completed": 0, "label_tags": {"original": 11}}
    return served


@pytest.fixture
def slicer(labelled, client_module, tmp_path):
    return client_module.MONAILabelClient(labelled, tmpdir=str(tmp_path), client_id="annotator-1")


def test_session_from_info_to_the_next_image(slicer, phantoms, tmp_path):
    info = slicer.info()
    assert "config" not in info
    assert info["labels"] == ["bar", "disc"]
    assert {name: model["type"] for name, model in info["models"].items()} == {
        "sam": "segmentation",
        "sam_prompt": "deepgrow",
        "sam_volume": "deepgrow",
        "corrected_label": "segmentation",
        "best_label": "segmentation",
    }
    assert info["datastore"]["total"] == info["datastore"]["label_tags"]["original"] == 11
    n_completed = info["datastore"]["completed"]

    sample = slicer.next_sample("lowest_quality", {})
    image_path = phantoms / next(p.name for p in phantoms.iterdir() if p.name.startswith(sample["id"]))
    assert sample["name"].endswith((".png", ".nii.gz"))
    downloaded = requests.get(f"{slicer.get_server_url()}/datastore/image?image={quote_plus(sample['id'])}", timeout=60)
    assert downloaded.content == image_path.read_bytes()

    stored = slicer.datastore()["objects"][sample["id"]]["labels"]["original"]["info"]["params"]["label_names"]
    segments = slicer_segments(slicer.download_label(sample["id"], "original"), stored, image_path)
    assert_shows_phantom(segments, image_path)

    file, params = slicer.infer("sam", sample["id"], dict(SLICER))
    assert file.endswith(".nrrd")
    assert_shows_phantom(slicer_segments(file, params["label_names"], image_path), image_path)

    assert_prompts_mark_the_disc(slicer, sample["id"], image_path)

    submitted = submit_swapped(slicer, sample["id"], image_path, segments, tmp_path / "submitted.nii.gz")
    after = slicer.datastore()["objects"][sample["id"]]["labels"]["original"]["info"]["params"]["label_names"]
    assert after == {"bar": BAR, "disc": DISC}
    best = slicer_segments(slicer.download_label(sample["id"], "original"), after, image_path)
    assert all(np.array_equal(best[name], segments[name]) for name in ("bar", "disc"))
    assert Path(slicer.download_label(sample["id"], "final")).read_bytes() == submitted.read_bytes()
    assert slicer.info()["datastore"]["completed"] == n_completed + 1

    slicer.train_start("student", {"steps": 4})
    trained = wait_until_done(f"{slicer.get_server_url()}/train/")
    assert trained["status"] == "DONE", trained["details"]
    assert slicer.train_status()["status"] == "DONE"
    assert slicer.train_status(check_if_running=True) is False
    info = slicer.info()
    assert "student" in info["models"]
    stats = info["train_stats"]["student"]
    assert 0 <= stats["best_metric"] <= 1
    assert (stats["epoch"], stats["total_epochs"]) == (4, 4)
    assert re.fullmatch(r"\d+:\d\d:\d\d", stats["total_time"])
    file, _ = slicer.infer("student", sample["id"], dict(SLICER))
    assert_on_grid(file, image_path)

    following = slicer.next_sample("lowest_quality", {})
    assert following["id"] != sample["id"]


def test_scoring_ranks_the_queue_and_tells_why(slicer):
    url = slicer.get_server_url()
    # Whatever was scored before: what has not changed is not scored again unless it is asked for.
    requests.post(f"{url}/scoring/label_quality", json={"full": True}, timeout=60).raise_for_status()
    task = wait_until_done(f"{url}/scoring/")
    assert task["status"] == "DONE", task["details"]
    assert any("scoring labels" in line for line in task["details"])
    sample = slicer.next_sample("lowest_quality", {})
    assert 0 <= sample["score"] <= 1
    assert f"(score {sample['score']:.2f})" in sample["name"]
    assert {"expected_dice", "expected_dice_interval", "reasons", "why"} <= set(sample)


def test_self_correction_runs_and_best_label_follows(slicer):
    url = slicer.get_server_url()
    requests.post(f"{url}/scoring/self_correction", timeout=60).raise_for_status()
    task = wait_until_done(f"{url}/scoring/")
    assert task["status"] == "DONE", task["details"]
    n_corrected = slicer.info()["datastore"]["label_tags"].get("corrected", 0)
    corrected = [image_id for image_id in slicer.datastore()["objects"] if _has(url, image_id, "corrected")]
    assert len(corrected) == n_corrected
    for image_id in corrected[:1]:
        _, params = slicer.infer("corrected_label", image_id, dict(SLICER))
        assert params["reasons"]
        assert params["changes"]["n_voxels"] > 0


def test_masks_of_oblique_images_lie_on_their_grid(slicer, phantoms):
    for name in ("oblique2d", "oblique3d"):
        path = phantoms / f"{name}.nii.gz"
        file, params = slicer.infer("sam", name, dict(SLICER))
        assert_shows_phantom(slicer_segments(file, params["label_names"], path), path)
        file, _ = slicer.infer("sam", name, {"result_extension": ".nii.gz"})
        assert np.allclose(nib.load(file).affine, nib.load(path).affine, atol=1e-4)


@pytest.mark.parametrize("slice_index", [0, 2])
def test_a_prompt_in_one_slice_marks_that_slice(slicer, phantoms, slice_index):
    path = phantoms / "oblique3d.nii.gz"
    box = {"roi": [56, 10, 14, 62, 0, 2], "slice": slice_index, "label": "disc"}
    file, params = slicer.infer("sam_prompt", "oblique3d", {**SLICER, **box})
    mask = slicer_segments(file, params["label_names"], path)["disc"]
    assert [bool(mask[..., k].any()) for k in range(3)] == [k == slice_index for k in range(3)]
    assert dice(mask[..., slice_index], truth(path)[..., slice_index] == DISC) > 0.8


def test_a_3d_box_marks_all_its_slices(slicer, phantoms):
    # Without points Slicer sends the position of the slice view in mm as `slice`.
    box = {"roi": [10, 56, 14, 62, 1, 2], "slice": 104, "label": "disc"}
    file, params = slicer.infer("sam_prompt", "oblique3d", {**SLICER, **box})
    mask = slicer_segments(file, params["label_names"], phantoms / "oblique3d.nii.gz")["disc"]
    assert [bool(mask[..., k].any()) for k in range(3)] == [False, True, True]


def test_a_box_in_one_slice_is_carried_through_the_volume_and_two_structures_come_at_once(slicer, phantoms):
    path = phantoms / "oblique3d.nii.gz"
    disc = {"roi": [56, 10, 14, 62, 1, 1], "label": "disc"}
    file, params = slicer.infer("sam_volume", "oblique3d", {**SLICER, **disc})
    mask = slicer_segments(file, params["label_names"], path)["disc"]
    assert dice(mask, truth(path) == DISC) > 0.8
    both = {"structures": [disc, {"label": "bar", "foreground": [[76, 40, 1]]}], "propagate": False}
    file, params = slicer.infer("sam_volume", "oblique3d", {**SLICER, **both})
    assert params["label_names"] == {"disc": 1, "bar": 2}
    segments = slicer_segments(file, params["label_names"], path)
    for name, value in (("disc", DISC), ("bar", BAR)):
        assert not segments[name][..., [0, 2]].any()
        assert dice(segments[name][..., 1], truth(path)[..., 1] == value) > 0.8


def test_the_stored_label_is_refined(slicer, phantoms):
    path = phantoms / "case6.png"
    stored = slicer.datastore()["objects"]["case6"]["labels"]["original"]["info"]["params"]["label_names"]
    before = slicer_segments(slicer.download_label("case6", "original"), stored, path)["disc"]
    request = {"mask": "best_label", "label": "disc", "background": [[33, 38, 0]]}
    file, params = slicer.infer("sam_prompt", "case6", {**SLICER, **request})
    mask = slicer_segments(file, params["label_names"], path)["disc"]
    assert not mask[33, 38].any()
    assert before[33, 38].all()
    assert mask.any()


def test_a_label_of_one_structure_alone_is_named_right(slicer, phantoms, tmp_path):
    image_path = phantoms / "case3.png"
    label = np.where(truth(image_path) == DISC, 1, 0).astype(np.uint8)
    file = write_nifti(tmp_path / "disc.nii.gz", label, read_image(image_path).affine)
    slicer.save_label("case3", file, params={"label_info": [{"name": "disc", "idx": 1}, {"name": "bar", "idx": 2}]})
    names = slicer.datastore()["objects"]["case3"]["labels"]["original"]["info"]["params"]["label_names"]
    assert names == {"disc": DISC}
    segments = slicer_segments(slicer.download_label("case3", "original"), names, image_path)
    assert np.array_equal(segments["disc"], label == 1)


def test_nothing_that_is_stored_is_lost(slicer, client_module, phantoms):
    url = slicer.get_server_url()
    before = slicer.download_label("case4", "original")
    for _ in range(2):
        slicer.infer("best_label", "case4", dict(SLICER))
    requests.post(f"{url}/infer/best_label?image=case4&output=image", timeout=60).raise_for_status()
    assert Path(slicer.download_label("case4", "original")).read_bytes() == Path(before).read_bytes()
    with pytest.raises(client_module.MONAILabelClientException) as refused:
        slicer.upload_image(str(phantoms / "case5.png"), "case4")
    assert "never overwritten" in refused.value.msg
    assert (
        requests.get(f"{url}/datastore/image?image=case4", timeout=60).content == (phantoms / "case4.png").read_bytes()
    )
    for target in ("label?id=case4&tag=original", "label?id=case4&tag=final", "image?id=case4"):
        reply = requests.delete(f"{url}/datastore/{target}", timeout=60)
        assert reply.status_code == 400
        assert "is not deleted" in reply.json()["detail"]


def test_an_uploaded_image_is_served(slicer, phantoms, tmp_path):
    upload = tmp_path / "new.png"
    upload.write_bytes((phantoms / "case0.png").read_bytes())
    assert slicer.upload_image(str(upload), "ward7/new")["image"] == "ward7/new"
    file, _ = slicer.infer("sam", "ward7/new", dict(SLICER))
    assert_on_grid(file, upload)
    assert (phantoms / "ward7" / "new.png").read_bytes() == upload.read_bytes()
    (phantoms / "ward7" / "new.png").unlink()


def test_an_upload_session_is_served(slicer, phantoms):
    session = slicer.create_session(str(phantoms / "case1.png"))
    prompt = {"foreground": [[33, 38, 0]], "label": "disc"}
    file, params = slicer.infer("sam_prompt", "x", {**SLICER, **prompt}, session_id=session["session_id"])
    mask = slicer_segments(file, params["label_names"], phantoms / "case1.png")["disc"]
    assert mask[33, 38].all()
    assert dice(mask, truth(phantoms / "case1.png") == DISC) > 0.8
    assert not (Path.home() / ".cache" / "monailabel" / "sessions" / session["session_id"]).exists()


@pytest.mark.parametrize(
    ("method", "path", "data", "status", "says"),
    [
        ("POST", "/infer/nope?image=case0", {}, 404, "nope"),
        ("POST", "/infer/sam?image=nobody", {}, 404, "nobody"),
        ("POST", "/infer/sam?image=../protocol", {}, 400, "../protocol"),
        ("POST", "/infer/sam?image=/etc/passwd", {}, 400, "/etc/passwd"),
        ("POST", "/infer/sam?image=case0", {"params": '{"image": "/etc/passwd"}'}, 400, "/etc/passwd"),
        ("POST", "/infer/sam?image=case0", {"params": '{"save_label": true, "label_tag": "final"}'}, 400, "final"),
        ("POST", "/infer/sam_prompt?image=case0", {"params": '{"save_label": true}'}, 400, "not saved"),
        ("POST", "/infer/sam?image=case0", {"params": '{"result_extension": ".exe"}'}, 400, ".exe"),
        ("POST", "/infer/sam?image=case0", {"params": "{"}, 400, "not JSON"),
        ("POST", "/infer/sam?image=case0", {"params": "[1]"}, 400, "[1]"),
        ("POST", "/infer/sam_prompt?image=case0", {"params": "{}"}, 400, "no prompt"),
        ("POST", "/infer/sam_prompt?image=case0", {"params": '{"foreground": [[500, 3, 0]]}'}, 400, "500"),
        ("POST", "/infer/sam_prompt?image=case0", {"params": '{"roi": [1, 2, 3]}'}, 400, "roi"),
        ("POST", "/infer/sam_volume?image=case0", {"params": "{}"}, 400, "no prompt"),
        ("POST", "/infer/sam_volume?image=case0", {"params": '{"axis": 5, "roi": [1, 2, 3, 4]}'}, 400, "`axis`"),
        ("POST", "/infer/sam_volume?image=case0", {"params": '{"mask": "/etc/passwd"}'}, 400, "`mask`"),
        (
            "POST",
            "/infer/sam_volume?image=case0",
            {"params": '{"mask": "best_label", "label": "spleen"}'},
            400,
            "no 'spleen'",
        ),
        ("POST", "/infer/wsi/sam?image=/etc/passwd", None, 400, "whole-slide"),
        ("POST", "/activelearning/nope", None, 404, "nope"),
        ("POST", "/scoring/nope", None, 404, "nope"),
        ("POST", "/train/nope", None, 404, "nope"),
        ("POST", "/batch/infer/nope", None, 404, "nope"),
        ("GET", "/datastore/label?label=case0&tag=../../evil", None, 400, "../../evil"),
        ("GET", "/datastore/label?label=case0&tag=nosuchtag", None, 404, "nosuchtag"),
        ("GET", "/datastore/image?image=../../etc/passwd", None, 400, "../../etc/passwd"),
        ("GET", "/nowhere", None, 404, "Not Found"),
    ],
)
def test_bad_requests_are_named(labelled, method, path, data, status, says):
    reply = requests.request(method, labelled + path, data=data, timeout=60)
    assert (reply.status_code, set(reply.json())) == (status, {"error", "detail"})
    assert says in reply.json()["detail"]


def test_batch_inference_may_not_write_final(labelled):
    reply = requests.post(f"{labelled}/batch/infer/sam", json={"label_tag": "final"}, timeout=60)
    assert reply.status_code == 400
    assert "final" in reply.json()["detail"]


@pytest.mark.parametrize(
    ("query", "make", "params", "status", "says"),
    [
        ("image=case7&tag=../../evil", "good", "{}", 400, "../../evil"),
        ("image=../case7", "good", "{}", 400, "../case7"),
        ("image=nobody", "good", "{}", 404, "nobody"),
        ("image=case7", "other_grid", "{}", 422, "grid"),
        ("image=case7", "text", "{}", 422, "cannot be read"),
        ("image=case7", "truncated", "{}", 422, "cannot be read"),
        ("image=case7", "good", '{"label_info": [{"name": "spleen", "idx": 5}]}', 422, "spleen"),
        ("image=case7", "good", '{"label_info": [{"name": "disc", "idx": 4}]}', 422, "does not name"),
        ("image=case7", "unknown_value", "{}", 422, "[9]"),
        ("image=case7", "good", "[1]", 400, "JSON object"),
    ],
)
def test_bad_labels_are_refused_and_leave_no_trace(labelled, served_cwd, tmp_path, query, make, params, status, says):
    file = bad_label(tmp_path / "label.nii.gz", make)
    before = sorted((served_cwd / "tmp").iterdir())
    with file.open("rb") as upload:
        reply = requests.put(
            f"{labelled}/datastore/label?{query}", files={"label": upload}, data={"params": params}, timeout=60
        )
    assert (reply.status_code, set(reply.json())) == (status, {"error", "detail"}), reply.text
    assert says in reply.json()["detail"]
    assert sorted((served_cwd / "tmp").iterdir()) == before
    assert requests.get(f"{labelled}/datastore/label?label=case7&tag=final", timeout=60).status_code == 404


def test_the_hosts_own_command_serves_the_app(host_served, client_module, phantoms, tmp_path):
    slicer = client_module.MONAILabelClient(host_served, tmpdir=str(tmp_path), client_id="annotator-2")
    assert set(slicer.info()["models"]) == {"sam", "sam_prompt", "sam_volume", "corrected_label", "best_label"}
    assert requests.get(f"{host_served}/scoring/", timeout=60).status_code == 404  # none runs by itself
    reply = requests.post(f"{host_served}/infer/sam?image=nobody", timeout=60)
    assert (reply.status_code, reply.json()["error"]) == (404, "UnknownImageError")
    origin = requests.get(f"{host_served}/info/", headers={"Origin": "http://evil.example"}, timeout=60)
    assert "access-control-allow-origin" not in origin.headers

    sample = slicer.next_sample("lowest_quality", {})
    image_path = next(p for p in phantoms.iterdir() if p.name.startswith(sample["id"]))
    file, params = slicer.infer("sam", sample["id"], dict(SLICER))
    segments = slicer_segments(file, params["label_names"], image_path)
    assert_shows_phantom(segments, image_path)
    submit_swapped(slicer, sample["id"], image_path, segments, tmp_path / "submitted.nii.gz")
    assert slicer.next_sample("lowest_quality", {})["id"] != sample["id"]

    requests.post(f"{host_served}/scoring/label_quality", timeout=60).raise_for_status()
    task = wait_until_done(f"{host_served}/scoring/")
    assert task["status"] == "DONE", task["details"]


def assert_prompts_mark_the_disc(slicer, image_id, image_path):
    disc = truth(image_path) == DISC
    box = {"roi": [10, 56, 14, 62, 0, 0], "slice": 0, "foreground": [], "background": []}
    file, params = slicer.infer("sam_prompt", image_id, {**SLICER, "label": "disc", **box})
    assert dice(slicer_segments(file, params["label_names"], image_path)["disc"], disc) > 0.8
    points = {"foreground": [[33, 38, 0]], "background": [[76, 40, 0]]}
    file, params = slicer.infer("sam_prompt", image_id, {**SLICER, "label": "disc", **points})
    mask = slicer_segments(file, params["label_names"], image_path)["disc"]
    assert mask[33, 38].all()
    assert not mask[76, 40].any()
    assert dice(mask, disc) > 0.8
    # Nothing that is marked is no reason to answer without a mask file.
    file, params = slicer.infer(
        "sam_prompt", image_id, {**SLICER, "label": "disc", **points, "foreground": [[2, 2, 0]]}
    )
    assert_on_grid(file, image_path)


def submit_swapped(slicer, image_id, image_path, segments, path):
    """Submit as Slicer does, which numbers segments by their position: the disc becomes 1 and the bar 2."""
    label = np.zeros(segments["disc"].shape, np.uint8)
    label[segments["disc"]], label[segments["bar"]] = 1, 2
    write_nifti(path, label, read_image(image_path).affine)
    info = [{"name": "disc", "idx": 1}, {"name": "bar", "idx": 2}]
    assert slicer.save_label(image_id, str(path), params={"label_info": info}) == {"image": image_id, "label": image_id}
    return path


def wait_until_done(url):
    deadline_s = time.monotonic() + TASK_TIMEOUT_S
    while time.monotonic() < deadline_s:
        task = requests.get(url, timeout=60).json()
        if task["status"] not in ("SUBMITTED", "RUNNING"):
            return task
        time.sleep(1)
    raise AssertionError(f"not done in {TASK_TIMEOUT_S} s: {task}")


def _has(url, image_id, tag):
    return requests.head(f"{url}/datastore/label?image={image_id}&tag={tag}", timeout=60).status_code == 200


def test_png_of_the_phantom_is_what_the_truth_says(phantoms):
    with Image.open(phantoms / "case0.png") as picture:
        assert picture.size == (96, 80)
    assert {0, DISC, BAR} == set(np.unique(truth(phantoms / "case0.png")))
