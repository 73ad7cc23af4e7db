"""Files that are no images or labels: one clear error that names the file, and no memory for what is only claimed."""

import gzip
import tracemalloc
import zlib

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from samcorrect.lib.errors import ImageError, LabelError
from samcorrect.lib.store.volumes import (
    read_image,
    read_label_map,
    write_label_map,
)

SUFFIXES = (".nii.gz", ".nii", ".nrrd")
SHAPE = (9, 10, 11)


def nifti_bytes(array: np.ndarray, **header: object) -> bytes:
    image = nib.Nifti1Image(array, np.eye(4))
    content = bytearray(image.to_bytes())
    fields = np.frombuffer(content[:348], nib.Nifti1Header.template_dtype).copy()
    for name, value in header.items():
        fields[name] = value
    content[:348] = fields.tobytes()
    return bytes(content)


def bad_files() -> dict[str, tuple[str, bytes, str]]:
    good = nifti_bytes(np.random.default_rng(0).normal(size=SHAPE).astype(np.float32))
    nan = np.ones(SHAPE, np.float32)
    nan[0, 0, :2] = np.nan, np.inf
    truncated = gzip.compress(good)
    broken = bytearray(truncated)
    broken[len(broken) // 2] ^= 0xFF
    return {
        "truncated gzip": ("a.nii.gz", truncated[: len(truncated) // 2], "cannot be read as nii.gz"),
        "broken gzip": ("a.nii.gz", bytes(broken), "cannot be read as nii.gz"),
        "truncated nii": ("a.nii", good[:1000], "header claims 9 x 10 x 11"),
        "header alone": ("a.nii", good[:200], "cannot be read as nii"),
        "empty nii.gz": ("a.nii.gz", b"", "the file is empty"),
        "empty png": ("a.png", b"", "the file is empty"),
        "text named png": ("a.png", b"hello world, I am no picture\n" * 20, "cannot be read as png"),
        "text named jpg": ("a.jpg", b"hello\n", "cannot be read as jpg"),
        "text named nii.gz": ("a.nii.gz", b"hello\n" * 200, "cannot be read as nii.gz"),
        "text named nii": ("a.nii", b"hello\n" * 200, "cannot be read as nii"),
        "gzip of text": ("a.nii.gz", gzip.compress(b"hello\n" * 200), "cannot be read as nii.gz"),
        "text named nrrd": ("a.nrrd", b"hello\n" * 200, "cannot be read as nrrd"),
        "nan": ("a.nii.gz", gzip.compress(nifti_bytes(nan)), "2 values are NaN or infinite"),
        "four dimensions": ("a.nii", nifti_bytes(np.ones((9, 9, 9, 3), np.uint8)), "4 dimensions"),
        "one dimension": ("a.nii", nifti_bytes(np.ones(900, np.uint8)), "1 dimensions"),
        "complex": ("a.nii", nifti_bytes(np.ones(SHAPE, np.complex64)), "complex64; store one real number"),
        "too small": ("a.nii", nifti_bytes(np.ones((7, 9, 9), np.uint8)), r"slices are \(7, 9\) voxels, at least 8"),
        "flat affine": ("a.nii", nifti_bytes(np.ones(SHAPE, np.uint8), srow_z=[0, 0, 0, 0]), "cannot be inverted"),
        "nan affine": ("a.nii", nifti_bytes(np.ones(SHAPE, np.uint8), srow_x=[np.nan, 0, 0, 0]), "cannot be"),
    }


@pytest.mark.parametrize("case", bad_files())
def test_a_bad_image_is_one_image_error_that_names_the_file(tmp_path, case):
    name, content, reason = bad_files()[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ImageError, match=f"{name}: .*{reason}") as caught:
        read_image(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("case", ["truncated gzip", "empty png", "text named nrrd", "nan", "four dimensions"])
def test_a_bad_label_is_one_label_error_that_names_the_file(tmp_path, case):
    name, content, _ = bad_files()[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(LabelError, match=f"^{name}: "):
        read_label_map(tmp_path / name)


def test_a_one_pixel_picture_a_missing_file_and_a_foreign_suffix_are_refused(tmp_path):
    Image.new("L", (1, 1)).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match=r"a\.png: the slices are \(1, 1\) voxels"):
        read_image(tmp_path / "a.png")
    with pytest.raises(ImageError, match=r"gone\.png: no such file"):
        read_image(tmp_path / "gone.png")
    (tmp_path / "a.tif").write_bytes(b"II*")
    with pytest.raises(ImageError, match=r"a\.tif: not one of the file types \.nii\.gz"):
        read_image(tmp_path / "a.tif")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ImageError, match=r"folder\.png: no such file"):
        read_image(tmp_path / "folder.png")


def test_another_format_under_the_name_of_a_png_reaches_no_decoder(tmp_path):
    Image.new("L", (20, 20), 9).save(tmp_path / "a.bmp")
    (tmp_path / "a.bmp").rename(tmp_path / "a.png")
    with pytest.raises(ImageError, match=r"a\.png: cannot be read as png"):
        read_image(tmp_path / "a.png")


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")


def huge_claims() -> dict[str, tuple[str, bytes]]:
    small = np.ones((10, 10, 10), np.uint8)
    second = nib.Nifti2Image(small, np.eye(4))
    second.header["dim"][1:4] = 100_000
    second_bytes = second.header.binaryblock + bytes(2000)
    first = nifti_bytes(small, dim=[3, 3000, 3000, 3000, 1, 1, 1, 1])
    detour = nifti_bytes(small, vox_offset=1e9)
    head = b"NRRD0004\ntype: uint8\ndimension: 3\nsizes: %s\nencoding: %s\n\n"
    big_header = b"NRRD0004\n" + b"# " + b"x" * 20_000_000 + b"\n\n"
    # 1000 x 1000 x 1000 zeros in 1 MB, under a header that claims 10 x 10 x 10.
    inflated = gzip.compress(bytes(200_000_000), compresslevel=1)
    shape = (100_000).to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0])
    png = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", shape) + png_chunk(b"IDAT", zlib.compress(bytes(1000)))
    return {
        "NIfTI-2 of 100000^3": ("a.nii", second_bytes),
        "NIfTI-2 of 100000^3, gzip": ("a.nii.gz", gzip.compress(second_bytes)),
        "NIfTI of 3000^3": ("a.nii", first),
        "NIfTI of 3000^3, gzip": ("a.nii.gz", gzip.compress(first)),
        "NIfTI with a header of 1 GB": ("a.nii.gz", gzip.compress(detour)),
        "NRRD of 100000^3": ("a.nrrd", head % (b"100000 100000 100000", b"raw") + bytes(1000)),
        "NRRD of 3000^3, gzip": ("a.nrrd", head % (b"3000 3000 3000", b"gzip") + gzip.compress(bytes(1000))),
        "NRRD of no voxels that unpacks to 200 MB": ("a.nrrd", head % (b"10 10 0", b"gzip") + inflated),
        "NRRD with a header of 20 MB": ("a.nrrd", big_header),
        "PNG of 100000^2": ("a.png", png + png_chunk(b"IEND", b"")),
    }


@pytest.mark.parametrize("case", huge_claims())
def test_a_header_that_claims_more_than_the_file_holds_takes_no_memory(tmp_path, case):
    name, content = huge_claims()[case]
    (tmp_path / name).write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(ImageError, match=f"^{name}: "):
            read_image(tmp_path / name)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 40_000_000


def test_an_nrrd_that_unpacks_to_far_more_than_it_says_is_cut_off(tmp_path):
    voxels = bytes(range(250)) * 4
    head = b"NRRD0004\ntype: uint8\ndimension: 3\nsizes: 10 10 10\nencoding: gzip\n\n"
    (tmp_path / "a.nrrd").write_bytes(head + gzip.compress(voxels + bytes(200_000_000), compresslevel=1))
    tracemalloc.start()
    try:
        volume = read_image(tmp_path / "a.nrrd")
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert volume.array.ravel("F")[:250].tolist() == list(range(250))
    assert peak_bytes < 40_000_000


def test_an_nrrd_header_cannot_have_another_file_read(tmp_path):
    (tmp_path / "secret.raw").write_bytes(bytes(range(100)) * 10)
    for field in (b"data file: secret.raw", b"datafile: %s" % str(tmp_path / "secret.raw").encode()):
        head = b"NRRD0004\ntype: uint8\ndimension: 3\nsizes: 10 10 10\nencoding: raw\n" + field + b"\n\n"
        (tmp_path / "a.nrrd").write_bytes(head)
        with pytest.raises(ImageError, match=r"a\.nrrd: .*names another file"):
            read_image(tmp_path / "a.nrrd")


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".png", ".jpg"])
def test_random_damage_is_read_or_refused_and_never_another_error(tmp_path, suffix, rng):
    path = tmp_path / f"a{suffix}"
    if suffix in SUFFIXES:
        write_label_map(path, rng.integers(0, 9, SHAPE, dtype=np.uint8), np.eye(4))
    else:
        Image.fromarray(rng.integers(0, 9, (20, 20), dtype=np.uint8)).save(path)
    good = path.read_bytes()
    n_refused = 0
    for _ in range(150):
        content = bytearray(good)
        for position in rng.integers(0, min(len(content), 400), rng.integers(1, 6)):
            content[position] = rng.integers(0, 256)
        path.write_bytes(content)
        try:
            read_image(path)
        except ImageError:
            n_refused += 1
    assert n_refused > 0
