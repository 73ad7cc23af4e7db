"""An export is made once, and anew where a file of it is torn, gone or changed."""

import pytest

from samcorrect.lib.networks.exports import load_exported


class _Exporter:
    """Writes and reads an export of two files."""

    def __init__(self):
        self.n_written = 0

    def __call__(self, export_dir, identity="weights v1"):
        def write(folder):
            self.n_written += 1
            (folder / "graph.xml").write_text("graph")
            (folder / "weights.bin").write_bytes(bytes(100))

        return load_exported(export_dir, identity, write=write, load=lambda f: (f / "graph.xml").read_text())


@pytest.fixture
def export() -> _Exporter:
    return _Exporter()


def test_it_is_made_once_for_each_identity(export, tmp_path):
    folder = tmp_path / "encoders"
    assert [export(folder), export(folder), _Exporter()(folder)] == ["graph"] * 3
    assert export.n_written == 1
    export(folder, "weights v2")
    assert export.n_written == 2
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize(
    "tear",
    [
        lambda folder: (folder / "weights.bin").write_bytes(bytes(50)),
        lambda folder: (folder / "weights.bin").write_bytes(bytes(99) + b"x"),
        lambda folder: (folder / "graph.xml").unlink(),
        lambda folder: (folder / "sha256.json").write_text("{"),
        lambda folder: (folder / "sha256.json").unlink(),
    ],
    ids=["half", "a changed byte", "gone", "torn sums", "no sums"],
)
def test_a_torn_one_is_made_anew_and_kept(tear, export, tmp_path):
    export(tmp_path)
    (folder,) = tmp_path.iterdir()
    tear(folder)
    assert export(tmp_path) == "graph"
    assert export.n_written == 2
    export(tmp_path)
    assert export.n_written == 2
    assert (folder / "weights.bin").read_bytes() == bytes(100)
    assert list(tmp_path.iterdir()) == [folder]


def test_one_that_another_process_finished_first_stays(export, tmp_path):
    def write_slowly(folder):
        export(tmp_path)
        ((first,)) = [path for path in tmp_path.iterdir() if not path.name.startswith(".")]
        seen.append((first / "graph.xml").stat().st_ino)
        (folder / "graph.xml").write_text("graph")

    seen = []
    load_exported(tmp_path, "weights v1", write=write_slowly, load=str)

    (folder,) = tmp_path.iterdir()
    assert seen == [(folder / "graph.xml").stat().st_ino]
    assert export(tmp_path) == "graph"
    assert export.n_written == 1


def test_where_it_cannot_be_kept_it_serves_once(export, tmp_path, caplog):
    (tmp_path / "file").write_text("no folder")
    assert export(tmp_path / "file") == "graph"
    assert export(None) == "graph"
    assert export.n_written == 2
    assert "encoders are not kept in" in caplog.text


def test_a_failed_export_leaves_nothing(tmp_path):
    def write(folder):
        (folder / "graph.xml").write_text("half")
        raise ValueError("stopped")

    with pytest.raises(ValueError, match="stopped"):
        load_exported(tmp_path, "ours", write=write, load=str)
    assert list(tmp_path.iterdir()) == []
