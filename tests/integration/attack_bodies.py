"""Bodies of the hostile requests in attacks.py."""

import io
import struct
import tarfile
import zlib
from urllib.parse import quote

import nibabel as nib
import numpy as np
from PIL import Image

MAX_UPLOAD_MB = 4
DISC = 5
BOUNDARY = "frontier"
# Headers, and what they announce.
Body = tuple[dict[str, str], bytes]


def form(**fields: str) -> Body:
    """A form as a browser sends it."""
    text = "&".join(f"{name}={quote(value, errors='surrogatepass')}" for name, value in fields.items())
    return {"Content-Type": "application/x-www-form-urlencoded"}, text.encode()


def jsons(text: str | bytes) -> Body:
    """A JSON body."""
    return {"Content-Type": "application/json"}, text if isinstance(text, bytes) else text.encode()


def parts(*files: tuple[str, str, bytes], **fields: str) -> Body:
    """A body of several parts: files as (field, file name, content), and fields."""
    lines = [f'form-data; name="{name}"\r\n\r\n{value}'.encode() for name, value in fields.items()]
    lines += [f'form-data; name="{field}"; filename="{name}"\r\n\r\n'.encode() + data for field, name, data in files]
    body = b"".join(f"--{BOUNDARY}\r\nContent-Disposition: ".encode() + line + b"\r\n" for line in lines)
    return {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}, body + f"--{BOUNDARY}--\r\n".encode()


def picture(side: int = 96) -> bytes:
    """A PNG."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(3).integers(0, 255, (80, side), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def label_map(shape: tuple[int, ...] = (96, 80, 1), value: int = DISC) -> bytes:
    """A label as NIfTI, by default on the grid of case0."""
    return nib.Nifti1Image(np.full(shape, value, np.uint8), np.diag([-1.0, -1.0, 1.0, 1.0])).to_bytes()


def huge_png() -> bytes:
    """A PNG whose header claims 60,000 x 60,000 pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))


def huge_nifti() -> bytes:
    """A NIfTI whose header claims 30,000 voxels on each side."""
    image = nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4))
    image.header["dim"][1:4] = 30_000
    return image.header.binaryblock + bytes(16)


def climbing_tar() -> bytes:
    """An archive that would write beside the folder it is unpacked in."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        entry = tarfile.TarInfo("../../../evil.txt")
        entry.size = 4
        archive.addfile(entry, io.BytesIO(b"evil"))
    return file.getvalue()


GOOD_IMAGE, GOOD_LABEL = ("file", "new.png", picture()), ("label", "label.nii", label_map())
