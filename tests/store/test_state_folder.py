"""A state folder and the studies that it belongs to."""

import shutil

import pytest

from samcorrect.lib.errors import StoreError
from samcorrect.lib.store.labels import LabelStore
from samcorrect.lib.store.sources import open_studies


@pytest.fixture
def store(make_studies):
    store = LabelStore(*open_studies(make_studies("a.png", "sub/b 1.png"), None))
    yield store
    store.ledger.close()


def test_a_missing_and_an_empty_studies_folder_are_store_errors(tmp_path):
    with pytest.raises(StoreError, match="does not exist"):
        LabelStore(*open_studies(tmp_path / "gone", None))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(StoreError, match="no images in"):
        LabelStore(*open_studies(tmp_path, None)).require_images()


def test_a_state_folder_of_other_studies_is_refused_and_keeps_its_images(store, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    image = (store.studies.folder / "a.png").read_bytes()
    (other / "z.png").write_bytes(image)
    says = r"belongs to other studies: it knows 'a' and not 'z'.* --state DIR"
    with pytest.raises(StoreError, match=says):
        LabelStore(*open_studies(other, store.state_dir))
    assert store.ledger.image_ids() == ["a", "sub/b 1"]
    # Studies that moved have the same ids, and others may have come.
    (other / "a.png").write_bytes(image)
    assert LabelStore(*open_studies(other, store.state_dir)).ledger.image_ids() == ["a", "z"]


def test_an_empty_folder_and_then_new_images_are_no_other_studies(store):
    shutil.move(store.studies.folder / "sub" / "b 1.png", store.state_dir / "b.png")
    (store.studies.folder / "a.png").unlink()
    store.rescan()
    assert store.ledger.image_ids() == []
    shutil.move(store.state_dir / "b.png", store.studies.folder / "b.png")
    store.rescan()
    assert store.ledger.image_ids() == ["b"]
