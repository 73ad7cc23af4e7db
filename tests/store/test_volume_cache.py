"""Images are kept up to a number of bytes, the last used first, and never longer than their files are the same."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from samcorrect.lib.errors import ImageError
from samcorrect.lib.store.volume_cache import VolumeCache

# 10 x 10 pixels of float32.
IMAGE_BYTES = 400


@pytest.fixture
def image(tmp_path):
    """A function that writes a picture of one value and returns its path."""

    def write(name, value=1):
        path = tmp_path / f"{name}.png"
        Image.fromarray(np.full((10, 10), value, np.uint8)).save(path)
        return path

    return write


def test_what_was_used_last_stays(image):
    cache = VolumeCache(2 * IMAGE_BYTES)
    a, b, c = image("a"), image("b"), image("c")
    first, second = cache.read(a), cache.read(b)
    assert cache.read(a) is first
    cache.read(c)  # there is room for two: b was used before a
    assert cache.read(a) is first
    assert cache.read(b) is not second


def test_a_changed_file_is_read_again(image):
    cache = VolumeCache(10 * IMAGE_BYTES)
    path = image("a", 1)
    assert cache.read(path).array.max() == 1
    state = path.stat()
    image("a", 2)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert cache.read(path).array.max() == 2
    # The old one is gone from the count, too: nine others fit beside it.
    kept = [cache.read(image(f"other{n}")) for n in range(9)]
    assert all(cache.read(path.with_name(f"other{n}.png")) is volume for n, volume in enumerate(kept))


def test_what_waits_takes_no_others_place(image):
    cache = VolumeCache(IMAGE_BYTES)
    a, b = image("a"), image("b")
    first = cache.read(a)
    other = cache.read(b, may_evict=False)
    assert cache.read(a) is first
    assert cache.read(b, may_evict=False) is not other


@pytest.mark.parametrize("max_bytes", [0, IMAGE_BYTES - 1])
def test_what_has_no_room_is_read_and_not_kept(image, max_bytes):
    cache = VolumeCache(max_bytes)
    path = image("a", 7)
    volume = cache.read(path)
    assert volume.array.max() == 7
    assert cache.read(path) is not volume


def test_threads_that_ask_for_one_image_get_the_same_array(image):
    cache, path, n_threads = VolumeCache(IMAGE_BYTES), image("a"), 8
    at_once = threading.Barrier(n_threads)

    def read(_):
        at_once.wait()
        return cache.read(path)

    with ThreadPoolExecutor(n_threads) as pool:
        volumes = list(pool.map(read, range(n_threads)))
    assert all(volume is volumes[0] for volume in volumes)


def test_nobody_changes_what_others_read(image):
    volume = VolumeCache(IMAGE_BYTES).read(image("a"))
    with pytest.raises(ValueError, match="read-only"):
        volume.array[0] = 5


def test_a_file_that_goes_is_an_error_and_no_memory(image):
    cache, path = VolumeCache(IMAGE_BYTES), image("a")
    cache.read(path)
    path.unlink()
    with pytest.raises(ImageError, match=r"a\.png: no such file"):
        cache.read(path)
    assert cache.read(image("b")) is cache.read(path.with_name("b.png"))
