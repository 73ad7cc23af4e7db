"""The cache gives what was encoded, once, and never what was torn or belongs to another model."""

import multiprocessing
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from segment_anything.modeling import MaskDecoder, TwoWayTransformer
from torch import nn

from samcorrect.lib.networks.architectures import ARCHITECTURES
from samcorrect.lib.networks.embedding_cache import EmbeddingCache
from samcorrect.lib.networks.sam import SamModel

SIDE_PX = 256

# float16 (256, 64, 64), the .npy header of 128 bytes and the checksum.
HEADER_BYTES = 128
FILE_BYTES = HEADER_BYTES + 256 * 64 * 64 * 2 + 4


class _Encoder(nn.Module):
    """The smallest network of the real one's interface: LiteMedSAM takes a second a slice, which buys nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.n_encoded = 0
        transformer = TwoWayTransformer(depth=1, embedding_dim=8, num_heads=1, mlp_dim=8)
        self.mask_decoder = MaskDecoder(transformer_dim=8, transformer=transformer)

    @property
    def prompt_encoder(self) -> "_Encoder":
        return self

    def get_dense_pe(self) -> torch.Tensor:
        return torch.zeros(1, 1, 1, 1)

    def image_encoder(self, pixels: torch.Tensor) -> torch.Tensor:
        self.n_encoded += 1
        return nn.functional.avg_pool2d(pixels[:, :1], 4).expand(1, 256, -1, -1)


def small_model(
    *, digest: str = "a" * 64, runtime: str = "torch-fp32", architecture: str = "lite_medsam"
) -> tuple[SamModel, _Encoder]:
    network = _Encoder()
    model = SamModel(network, ARCHITECTURES[architecture], name="small", digest=digest, runtime=runtime)
    return model, network


def frame_of(seed: int) -> torch.Tensor:
    return torch.rand(SIDE_PX, SIDE_PX, generator=torch.Generator().manual_seed(seed))


def files_of(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.npy"))


def test_the_second_time_gives_the_same_without_encoding(sam, tmp_path):
    cache = EmbeddingCache(tmp_path)
    frame = frame_of(0)

    first = cache.embedding(sam, frame)
    (path,) = files_of(tmp_path)
    written = path.read_bytes()
    inode = path.stat().st_ino
    second = EmbeddingCache(tmp_path).embedding(sam, frame)

    assert torch.equal(first, second)
    assert (second.shape, second.dtype) == ((256, SIDE_PX // 4, SIDE_PX // 4), torch.float16)
    # Encoding anew would have put a new file in its place.
    assert path.stat().st_ino == inode
    assert path.read_bytes() == written


def test_each_frame_is_encoded_once(tmp_path):
    cache, (model, network) = EmbeddingCache(tmp_path), small_model()

    for seed in (0, 1, 0, 1, 0):
        assert torch.equal(cache.embedding(model, frame_of(seed)), model.encode(frame_of(seed)))
        network.n_encoded -= 1

    assert network.n_encoded == 2
    assert len(files_of(tmp_path)) == 2


def test_a_transposed_frame_is_another_frame(tmp_path):
    cache, (model, network) = EmbeddingCache(tmp_path), small_model()

    straight, turned = cache.embedding(model, frame_of(0)), cache.embedding(model, frame_of(0).T)

    assert network.n_encoded == 2
    assert torch.equal(straight, turned.transpose(1, 2))


@pytest.mark.parametrize(
    "other",
    [{"digest": "b" * 64}, {"runtime": "torch-bf16"}, {"architecture": "mobile_sam"}],
    ids=["weights", "runtime", "preprocessing"],
)
def test_another_model_has_its_own_embedding(tmp_path, other):
    cache = EmbeddingCache(tmp_path)
    (model, network), (other_model, other_network) = small_model(), small_model(**other)

    cache.embedding(model, frame_of(0))
    cache.embedding(other_model, frame_of(0))

    assert (network.n_encoded, other_network.n_encoded) == (1, 1)
    assert len(files_of(tmp_path)) == 2


@pytest.mark.parametrize(
    "tear",
    [
        lambda b: b[: len(b) // 2],
        lambda b: b[:40],
        lambda b: b"",
        lambda b: bytes(len(b)),
        lambda b: b"text" * 40,
        lambda b: b[:HEADER_BYTES] + bytes(len(b) - HEADER_BYTES),
        lambda b: b[:60] + b"}" + b[61:],
        lambda b: b[:-4],
    ],
    ids=["half", "within the header", "empty", "zeros", "text", "zeros behind the header", "header", "no checksum"],
)
def test_a_torn_file_is_made_anew(tmp_path, tear):
    cache, (model, network) = EmbeddingCache(tmp_path), small_model()
    embedding = cache.embedding(model, frame_of(0))
    (path,) = files_of(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(tear(whole))

    again = cache.embedding(model, frame_of(0))

    assert torch.equal(again, embedding)
    assert network.n_encoded == 2
    assert path.read_bytes() == whole


def test_only_whole_files_are_left(tmp_path):
    cache, (model, _) = EmbeddingCache(tmp_path / "new" / "folder"), small_model()

    for seed in range(3):
        cache.embedding(model, frame_of(seed))

    everything = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert everything
    assert [path.stat().st_size for path in everything] == [FILE_BYTES] * 3


def test_the_cache_stays_below_its_size_and_drops_the_longest_unused(tmp_path):
    cache, (model, network) = EmbeddingCache(tmp_path, max_bytes=4 * FILE_BYTES), small_model()
    for seed in range(4):
        cache.embedding(model, frame_of(seed))
        for path in files_of(tmp_path):
            # The clock of some file systems is too coarse for what happens within one test.
            os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns - 10**9))
    cache.embedding(model, frame_of(0))
    assert network.n_encoded == 4

    cache.embedding(model, frame_of(4))

    # Five do not fit; down to nine tenths of four leaves three: 0 (just used), 3 and 4.
    assert sum(path.stat().st_size for path in files_of(tmp_path)) <= 4 * FILE_BYTES
    for seed in (0, 3, 4):
        cache.embedding(model, frame_of(seed))
    assert network.n_encoded == 5
    cache.embedding(model, frame_of(1))
    assert network.n_encoded == 6


def test_the_cap_counts_what_an_earlier_process_left(tmp_path):
    model, _ = small_model()
    for seed in range(4):
        EmbeddingCache(tmp_path).embedding(model, frame_of(seed))

    EmbeddingCache(tmp_path, max_bytes=3 * FILE_BYTES).embedding(model, frame_of(4))

    assert len(files_of(tmp_path)) <= 3


def test_a_folder_that_cannot_be_written_costs_time_and_is_told_once(tmp_path, caplog):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    cache, (model, network) = EmbeddingCache(blocked), small_model()

    for seed in (0, 1, 0):
        assert torch.equal(cache.embedding(model, frame_of(seed)), small_model()[0].encode(frame_of(seed)))

    assert network.n_encoded == 3
    (told,) = caplog.messages
    assert told.startswith(f"embeddings are not kept in {blocked}: ")


class _SlowEncoder(_Encoder):
    """So slow that all threads of a test ask before the first has an answer."""

    def image_encoder(self, pixels: torch.Tensor) -> torch.Tensor:
        time.sleep(0.1)
        return super().image_encoder(pixels)


def test_threads_that_ask_for_one_slice_encode_it_once(tmp_path):
    network = _SlowEncoder()
    model = SamModel(network, ARCHITECTURES["lite_medsam"], name="small", digest="a" * 64, runtime="torch-fp32")
    cache = EmbeddingCache(tmp_path)
    frames = [frame_of(seed) for seed in range(3)]

    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(lambda number: cache.embedding(model, frames[number % 3]), range(12)))

    assert network.n_encoded == 3
    assert all(torch.equal(found[n], found[n % 3]) for n in range(12))


def test_processes_share_a_small_cache(tmp_path):
    """Three processes that evict each other's files give right embeddings and keep the size near the cap."""
    # Forked: to import torch in each would take longer than all they do.
    fork = multiprocessing.get_context("fork")
    workers = [fork.Process(target=work, args=(tmp_path, number)) for number in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)

    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    everything = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.stat().st_size for path in everything} == {FILE_BYTES}
    assert len(everything) <= 6


def work(folder: Path, number: int) -> None:
    """What each process of the test above does: the same eight slices from another start, in a cache for four."""
    cache, (model, network) = EmbeddingCache(folder, max_bytes=4 * FILE_BYTES), small_model()
    for seed in [(3 * number + n) % 8 for n in range(24)]:
        assert torch.equal(cache.embedding(model, frame_of(seed)), model.encode(frame_of(seed)))
    assert network.n_encoded >= 24


def test_the_folder_is_not_walked_at_every_slice(tmp_path, monkeypatch):
    walks = []
    walk = EmbeddingCache._files
    monkeypatch.setattr(EmbeddingCache, "_files", lambda cache: walks.append(1) or walk(cache))
    # A twentieth of the cap is ten files and a half: the first slice is walked for, then the eleventh after it.
    cache, (model, _) = EmbeddingCache(tmp_path, max_bytes=210 * FILE_BYTES), small_model()

    n_walks = []
    for seed in range(13):
        cache.embedding(model, frame_of(seed))
        n_walks.append(len(walks))

    assert n_walks == [1] * 11 + [2] * 2


def test_a_cache_that_can_only_be_read_is_read(tmp_path, monkeypatch):
    cache, (model, network) = EmbeddingCache(tmp_path), small_model()
    cache.embedding(model, frame_of(0))

    def refuse(*_arguments: object) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(os, "utime", refuse)
    cache.embedding(model, frame_of(0))

    assert network.n_encoded == 1
