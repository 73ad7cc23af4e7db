"""Weights over HTTP: a file gets its name when it is whole and right, and what came before a cut is kept."""

import hashlib

import pytest

from samcorrect.lib.errors import StoreError, WeightsError
from samcorrect.lib.networks.download import download

CONTENT = bytes(range(256)) * 12_000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def test_a_file_is_fetched_with_progress(weights_server, tmp_path):
    path, told = tmp_path / "new" / "weights.pth", []
    with weights_server(CONTENT) as server:
        download(server.url, path, SHA256, progress=lambda done, total: told.append((done, total)))
    assert path.read_bytes() == CONTENT
    assert [file.name for file in path.parent.iterdir()] == ["weights.pth"]
    assert told[-1] == (len(CONTENT), len(CONTENT))
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    assert len(told) >= 3


def test_a_cut_connection_is_gone_on_from(weights_server, tmp_path):
    path = tmp_path / "weights.pth"
    # 15 blocks of 65536 bytes came whole.
    with weights_server(CONTENT, cut_after=1_000_000) as server:
        with pytest.raises(WeightsError, match="983040 bytes are kept; the same command goes on"):
            download(server.url, path, SHA256)
        assert not path.exists()
        server.cut_after = None
        told = []
        download(server.url, path, SHA256, progress=lambda done, total: told.append((done, total)))
    assert server.ranges == [None, "bytes=983040-"]
    assert path.read_bytes() == CONTENT
    assert told[0][0] > 983_040
    assert {total for _, total in told} == {len(CONTENT)}


def test_a_server_without_ranges_gives_it_all_again(weights_server, tmp_path):
    path = tmp_path / "weights.pth"
    path.with_name("weights.pth.part").write_bytes(CONTENT[:1000])
    with weights_server(CONTENT, has_ranges=False) as server:
        download(server.url, path, SHA256)
    assert server.ranges == ["bytes=1000-"]
    assert path.read_bytes() == CONTENT


def test_a_part_that_is_whole_only_gets_its_name(weights_server, tmp_path):
    path = tmp_path / "weights.pth"
    path.with_name("weights.pth.part").write_bytes(CONTENT)
    with weights_server(CONTENT) as server:
        download(server.url, path, SHA256)
    assert path.read_bytes() == CONTENT


def test_another_file_is_not_kept_and_the_next_try_starts_anew(weights_server, tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(b"what was there")
    with weights_server(CONTENT) as server:
        with pytest.raises(WeightsError, match=f"SHA-256 {SHA256}; wanted {'0' * 64}"):
            download(server.url, path, "0" * 64)
        assert path.read_bytes() == b"what was there"
        assert list(tmp_path.iterdir()) == [path]
        # A part of another file: the whole is wrong, is dropped, and the next try is right.
        path.with_name("weights.pth.part").write_bytes(b"another")
        with pytest.raises(WeightsError, match=f"wanted {SHA256}"):
            download(server.url, path, SHA256)
        download(server.url, path, SHA256)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://127.0.0.1/w.pth", "w.pth"])
def test_only_http_is_fetched(url, tmp_path):
    with pytest.raises(WeightsError, match="http and https can"):
        download(url, tmp_path / "w.pth", SHA256)


def test_a_server_that_is_gone_and_a_folder_that_cannot_be_written_are_told(weights_server, tmp_path):
    with weights_server(CONTENT) as server:
        blocked = tmp_path / "file"
        blocked.write_text("no folder")
        with pytest.raises(StoreError, match="cannot write"):
            download(server.url, blocked / "weights.pth", SHA256)
    with pytest.raises(WeightsError, match="cannot be fetched: ConnectionError"):
        download(server.url, tmp_path / "weights.pth", SHA256)
