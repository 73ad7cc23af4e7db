import pytest

from samcorrect.lib.compat.viewer_files import VIEWER_DIR, viewer_file
from samcorrect.lib.errors import RequestError


@pytest.fixture
def viewer(tmp_path):
    (tmp_path / "viewer" / "assets").mkdir(parents=True)
    for name in ("viewer/index.html", "viewer/assets/icon.svg", "secret.txt"):
        (tmp_path / name).touch()
    return tmp_path / "viewer"


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("assets/icon.svg", "assets/icon.svg"),
        ("", "index.html"),
        ("assets", "index.html"),
        ("viewer/study", "index.html"),
        ("assets/../index.html", "index.html"),
        ("a" * 5000, "index.html"),
    ],
)
def test_files_and_the_start_page(viewer, path, name):
    assert viewer_file(path, viewer) == viewer / name


@pytest.mark.parametrize("path", ["..", "../secret.txt", "/etc/passwd", "assets/../../secret.txt", "a\0b"])
def test_other_files_are_refused(viewer, path):
    with pytest.raises(RequestError, match=r"path of the viewer|leaves the viewer's folder"):
        viewer_file(path, viewer)


def test_a_link_out_of_the_viewer_is_refused(viewer):
    (viewer / "link.txt").symlink_to(viewer.parent / "secret.txt")
    with pytest.raises(RequestError, match="leaves"):
        viewer_file("link.txt", viewer)


def test_the_host_ships_a_viewer():
    assert viewer_file("") == VIEWER_DIR / "index.html"
    assert viewer_file("").is_file()
