import pytest

from samcorrect.lib.errors import ImageError, RequestError
from samcorrect.lib.store.confinement import require_inside, upload_target


@pytest.fixture
def studies(make_studies, tmp_path):
    studies = make_studies("a.png", "ward/b.png")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.png").touch()
    (studies / "linked").symlink_to(tmp_path / "outside")
    (studies / "inner").symlink_to(studies / "ward")
    (studies / "circle").symlink_to(studies / "circle")
    return studies


def target(studies, image_id, suffix=".png"):
    return upload_target(studies, [studies / "state"], image_id, suffix)


@pytest.mark.parametrize("image_id", ["new", "ward/new", "new/er/est", "inner/new", "labels", "a.b", "n" * 251])
def test_a_new_image_has_its_place(studies, image_id):
    assert target(studies, image_id) == studies / f"{image_id}.png"


@pytest.mark.parametrize(
    ("image_id", "says"),
    [
        ("../x", "not an image id"),
        ("a", "already"),
        ("ward/b", "already"),
        ("labels/final/a", "the host's own"),
        ("LABELS/final/a", "the host's own"),
        ("state/x", "the state folder"),
        ("linked/x", "a link out of the studies"),
        ("linked/deep/x", "a link out of the studies"),
        ("a.png/x", "names a file as a folder"),
        ("a.png/x/y", "names a file as a folder"),
        ("n" * 252, "at most 255 bytes"),
    ],
)
def test_other_places_are_refused(studies, image_id, says):
    with pytest.raises(RequestError, match=says):
        target(studies, image_id)


def test_a_dangling_link_is_not_overwritten(studies):
    (studies / "gone.png").symlink_to(studies / "nowhere.png")
    with pytest.raises(RequestError, match="already"):
        target(studies, "gone")


def test_a_circle_of_links_is_named(studies):
    with pytest.raises(ImageError, match="leads nowhere"):
        target(studies, "circle/x")


def test_images_are_read_inside_the_studies_only(studies):
    assert require_inside(studies / "a.png", studies) == studies / "a.png"
    assert require_inside(studies / "inner" / "b.png", studies) == studies / "inner" / "b.png"
    (studies / "a.png").unlink()
    (studies / "a.png").symlink_to(studies / "linked" / "secret.png")
    for path in (studies / "a.png", studies / "linked" / "secret.png", studies / "circle" / "x.png"):
        with pytest.raises(ImageError, match="link"):
            require_inside(path, studies)
