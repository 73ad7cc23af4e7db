"""Studies that lie in a PACS: listed by QIDO-RS, fetched by WADO-RS, labels stored by STOW-RS. One image is one series.

Nothing that names a patient is kept: a series is known by its SeriesInstanceUID, which is what OHIF asks by, a patient
by a keyed digest of PatientID. Images are fetched once, converted and moved into the cache in one step.
"""

import contextlib
import hashlib
import hmac
import logging
import os
import re
import secrets
import shutil
import tempfile
import time
import warnings
import zlib
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from urllib.parse import urlsplit

import nibabel as nib
import requests
from dicomweb_client import DICOMwebClient
from nibabel.filebasedimages import ImageFileError
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from samcorrect.lib.errors import ImageError, RequestError, SettingsError, StoreError
from samcorrect.lib.store.dicom_image import read_series
from samcorrect.lib.store.files import write_atomically
from samcorrect.lib.store.image_ids import log_name
from samcorrect.lib.store.studies import ImageFile

logger = logging.getLogger(__name__)

# What is drawn on; NM keeps its positions elsewhere, SM is larger than memory, and SEG, SR, PR, KO, DOC, RTSTRUCT, ...
# are no images. A search filter that names other modalities is followed.
IMAGE_MODALITIES = frozenset({"CT", "MR", "PT", "CR", "DX", "MG", "XA", "RF", "US", "OT"})
UID_PATTERN = re.compile(r"[0-9]+(\.[0-9]+)*")
MAX_UID_LENGTH = 64
SUFFIX = ".nii.gz"
# One answer of a PACS; larger lists are asked for in pages.
PAGE_SERIES = 1000
# A PACS that answers at all answers within these; it may pack a large series before it sends the first byte.
CONNECT_TIMEOUT_S, READ_TIMEOUT_S, STREAM_TIMEOUT_S = 5, 30, 120
# dicomweb-client looks through all of an instance again at each chunk, and STOWs more than one chunk without a length.
CHUNK_BYTES = 2**24
# Clients ask for lists several times a second while a viewer opens a sample.
PROBE_INTERVAL_S = 1.0
# A probe sees that the number of series changed; one that came while another went is seen by the next full scan.
MAX_SCAN_AGE_S = 600.0
CASE_KEY_NAME = "case.key"
# Hidden names in the cache are being written, or were when their process was killed.
FETCH_PREFIX, LEFTOVER_S = ".fetch-", 86_400
CREDENTIALS = "MONAI_LABEL_DATASTORE_USERNAME and MONAI_LABEL_DATASTORE_PASSWORD"


class _Session(requests.Session):
    """A session whose every request ends; dicomweb-client passes no timeout."""

    def request(self, *args: object, **kwargs: object) -> requests.Response:
        read_s = STREAM_TIMEOUT_S if kwargs.get("stream") else READ_TIMEOUT_S
        return super().request(*args, **{"timeout": (CONNECT_TIMEOUT_S, read_s), **kwargs})


class DicomWebStudies:
    """The series of a PACS as images.

    Attributes:
        location: The URL, for messages; it holds no credentials.
    """

    takes_labels = True

    def __init__(
        self,
        url: str,
        cache_dir: Path,
        *,
        key_file: Path,
        search_filter: Mapping[str, str | list[str]] | None = None,
        auth: tuple[str, str] | None = None,
        qido_prefix: str | None = None,
        wado_prefix: str | None = None,
        stow_prefix: str | None = None,
    ):
        """Name a PACS; it is not asked for anything yet.

        Args:
            url: Of its DICOMweb service, "http://host:8042/dicom-web".
            cache_dir: Where fetched images are kept.
            key_file: Holds the key of the digests that stand for patients; made at the first scan.
            search_filter: QIDO attributes that a series must have. `Modality` is one or a list of them; without it
                those of IMAGE_MODALITIES count.
            auth: User and password.
            qido_prefix, wado_prefix, stow_prefix: Where the services lie below the URL.

        Raises:
            SettingsError: The URL is not one of http or https, or holds credentials.
        """
        self.location = check_url(url)
        self.cache_dir = cache_dir
        self._key_file = key_file
        self._filter = dict(search_filter or {})
        wanted = self._filter.pop("Modality", IMAGE_MODALITIES)
        self._modalities = frozenset([wanted] if isinstance(wanted, str) else wanted)
        if len(self._modalities) == 1:
            self._filter["Modality"] = next(iter(self._modalities))
        session = _Session()
        session.auth = auth
        prefixes = {"qido_url_prefix": qido_prefix, "wado_url_prefix": wado_prefix, "stow_url_prefix": stow_prefix}
        self._client = DICOMwebClient(self.location, session, chunk_size=CHUNK_BYTES, **prefixes)
        self._client.set_http_retry_params(retry=False)
        # These tell the console what they ask for and which values of a header they doubt, patients' names among them.
        logging.getLogger("dicomweb_client").setLevel(logging.WARNING)
        warnings.filterwarnings("ignore", module="pydicom|highdicom")
        self._n_series, self._scanned_at_s, self._probed_at_s = -1, 0.0, 0.0
        self._checked_cache: dict[str, int] = {}

    # Lists

    def scan(self) -> tuple[list[ImageFile], list[tuple[str, str]]]:
        """List all series that are images, in order of their UIDs.

        Returns:
            The images, and (series, reason) for those that cannot be used.

        Raises:
            StoreError: The PACS cannot be reached or refuses.
        """
        found: dict[str, Mapping] = {}
        refused: list[tuple[str, str]] = []
        n_series = 0
        while page := self._search(limit=PAGE_SERIES, offset=n_series):
            known = len(found)
            found |= {str(_value(entry, "0020000E")): entry for entry in page}
            if len(found) == known:
                break  # the PACS knows no offset
            n_series = len(found)
        self._n_series, self._scanned_at_s = n_series, time.monotonic()
        self._probed_at_s = self._scanned_at_s
        images = []
        for uid, entry in sorted(found.items()):
            if _value(entry, "00080060") not in self._modalities:
                continue
            if not _is_uid(uid):
                refused.append((uid[:MAX_UID_LENGTH], "its SeriesInstanceUID is not a UID"))
                continue
            images.append(self._image(uid, entry))
        return images, refused

    def find(self, image_id: str) -> ImageFile | None:
        """One series by its UID, or None where the PACS has no such image. Raises StoreError as `scan` does."""
        entry = self._find(image_id)
        return None if entry is None else self._image(image_id, entry)

    def has_changed(self) -> bool:
        """Whether the number of series differs from the last scan's; asked at most once a second.

        A PACS that cannot be reached has not changed: the images known so far are served, and the log says so.
        """
        now_s = time.monotonic()
        if self._n_series < 0 or now_s - self._scanned_at_s > MAX_SCAN_AGE_S:
            return True
        if now_s - self._probed_at_s < PROBE_INTERVAL_S:
            return False
        self._probed_at_s = now_s
        # From the last known one on there is that one alone.
        expected = min(self._n_series, 1)
        try:
            return len(self._search(limit=2, offset=max(self._n_series - 1, 0))) != expected
        except StoreError as error:
            logger.warning("the list of images may be old: %s", error)
            return False

    # Images

    def file(self, path: str) -> Path:
        """The image as NIfTI in the cache, fetched and converted where it is not there yet.

        Raises:
            ImageError: No such series, or it is no regular volume.
            StoreError: The PACS cannot be reached, sends less than it lists, or the cache cannot be written.
        """
        uid = path.removesuffix(SUFFIX)
        if not (_is_uid(uid) and path.endswith(SUFFIX)):
            raise ImageError(f"{path[:80]!r} names no series: <SeriesInstanceUID>{SUFFIX} is expected")
        target = self.cache_dir / path
        if not target.exists():
            self._fetch(uid, target)
        return target

    def add(self, image_id: str, upload: Path) -> ImageFile:
        """Raises RequestError: images enter a PACS by DICOM."""
        raise RequestError(
            f"{image_id[:80]!r}: the studies are in the PACS at {self.location}; send it the image by DICOM"
        )

    # Labels

    def headers(self, image_id: str) -> list[Dataset]:
        """The headers of all instances of a series, without pixels, in no order.

        Raises:
            ImageError: No such series.
            StoreError: The PACS cannot be reached or refuses.
        """
        study = str(_value(self._require(image_id), "0020000D"))
        with self._reaching("retrieve the headers of a series"):
            entries = self._client.retrieve_series_metadata(study, image_id)
            whole = [{tag: item for tag, item in entry.items() if "BulkDataURI" not in item} for entry in entries]
            return [Dataset.from_json(entry) for entry in whole]

    def store(self, instance: Dataset) -> None:
        """Store an instance; one that is there already stays as it is.

        Raises:
            StoreError: The PACS cannot be reached, or did not take it.
        """
        with self._reaching("store a label"):
            reply = self._client.store_instances([instance])
        stored = {item.ReferencedSOPInstanceUID for item in reply.get("ReferencedSOPSequence") or ()}
        if instance.SOPInstanceUID not in stored:
            reasons = {f"0x{int(item.FailureReason):04X}" for item in reply.get("FailedSOPSequence") or ()}
            reason = f": reason {', '.join(sorted(reasons))}" if reasons else ""
            raise StoreError(f"the PACS at {self.location} did not take the label{reason}; its own log says why")

    def _fetch(self, uid: str, target: Path) -> None:
        entry = self._require(uid)
        n_listed = int(_value(entry, "00201209") or 0)
        began_s = time.monotonic()
        try:
            self.cache_dir.mkdir(parents=True, exist_ok=True)
            self._drop_leftovers()
            # In the cache and not in /tmp: only its owner can read it, and a killed fetch is cleared away by the next.
            with tempfile.TemporaryDirectory(prefix=FETCH_PREFIX, dir=self.cache_dir) as folder:
                uids: list[str] = []
                volume = read_series(self._receive(str(_value(entry, "0020000D")), uid, uids), Path(folder), uid)
        except StoreError:
            raise
        except OSError as error:
            raise StoreError(f"cannot write to {self.cache_dir}: {error.strerror or error}") from error
        if n_listed not in (0, len(uids)):
            raise StoreError(
                f"the PACS at {self.location} sent {len(uids)} of the {n_listed} images of series {uid}; try again"
            )
        image = nib.Nifti1Image(volume.array, volume.affine)
        image.header.set_xyzt_units("mm")
        image.header["descrip"] = _description(len(uids))
        write_atomically(target, lambda temporary: nib.save(image, temporary), suffix=SUFFIX)
        logger.info("fetched %s: %d instances, %.1f s", log_name(uid), len(uids), time.monotonic() - began_s)

    def _receive(self, study: str, uid: str, received: list[str]) -> Iterator[Dataset]:
        """Yield the instances of a series as they come, noting their UIDs in `received`."""
        with self._reaching("retrieve a series"):
            # As it is stored: a PACS need not know how to decompress what it keeps.
            for instance in self._client.iter_series(study, uid, media_types=(("application/dicom", "*"),)):
                if instance.SeriesInstanceUID != uid:
                    raise ValueError("an instance of another series")
                received.append(str(instance.SOPInstanceUID))
                yield instance

    def _drop_leftovers(self) -> None:
        for left in self.cache_dir.glob(".*"):
            with contextlib.suppress(FileNotFoundError):  # its owner lives
                if time.time() - left.stat().st_mtime < LEFTOVER_S:
                    continue
                shutil.rmtree(left) if left.is_dir() else left.unlink()

    def _image(self, uid: str, entry: Mapping) -> ImageFile:
        n_listed = int(_value(entry, "00201209") or 0)
        if n_listed and self._checked_cache.get(uid) != n_listed:
            _drop_outgrown(self.cache_dir / f"{uid}{SUFFIX}", n_listed)
            self._checked_cache[uid] = n_listed
        patient = _value(entry, "00100020") or _value(entry, "0020000D") or uid
        case = hmac.new(self._case_key, str(patient).encode(), hashlib.sha256).hexdigest()[:16]
        return ImageFile(uid, f"{uid}{SUFFIX}", case)

    @cached_property
    def _case_key(self) -> bytes:
        """The key of the digests that stand for patients: without it nobody can try patient numbers on the ledger."""
        with contextlib.suppress(FileNotFoundError):
            return self._key_file.read_bytes()
        folder = self._key_file.parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=folder) as temporary:
                temporary.write(secrets.token_bytes(32))
                temporary.flush()
                os.fsync(temporary.fileno())
                with contextlib.suppress(FileExistsError):  # another process was first
                    os.link(temporary.name, self._key_file)
            return self._key_file.read_bytes()
        except OSError as error:
            raise StoreError(f"cannot write {CASE_KEY_NAME} in {folder}: {error.strerror or error}") from error

    def _require(self, uid: str) -> Mapping:
        entry = self._find(uid)
        if entry is None:
            raise ImageError(f"the PACS at {self.location} has no image series {uid[:MAX_UID_LENGTH]!r} (any more)")
        return entry

    def _find(self, uid: str) -> Mapping | None:
        if not _is_uid(uid):
            return None
        entries = self._search(SeriesInstanceUID=uid)
        found = [entry for entry in entries if _value(entry, "0020000E") == uid]
        return next((entry for entry in found if _value(entry, "00080060") in self._modalities), None)

    def _search(self, limit: int | None = None, offset: int | None = None, **filters: str) -> list[Mapping]:
        fields = ["PatientID", "NumberOfSeriesRelatedInstances"]
        with self._reaching("list its series"):
            return self._client.search_for_series(
                limit=limit, offset=offset, fields=fields, search_filters={**self._filter, **filters}
            )

    @contextlib.contextmanager
    def _reaching(self, purpose: str) -> Iterator[None]:
        """Turn whatever goes wrong on the way into a StoreError that says what to do."""
        pacs = f"the PACS at {self.location}"
        try:
            yield
        except requests.HTTPError as error:
            status = error.response.status_code
            if status in (401, 403):
                raise StoreError(f"{pacs} refused to {purpose} (HTTP {status}); set {CREDENTIALS}") from error
            advice = "check the URL" if status == 404 else "its own log says why"
            raise StoreError(f"{pacs} could not {purpose} (HTTP {status}); {advice}") from error
        except requests.JSONDecodeError as error:
            raise StoreError(f"{pacs} does not answer as a DICOMweb service; check the URL") from error
        except requests.RequestException as error:
            reason = type(error).__name__
            raise StoreError(
                f"cannot reach {pacs} ({reason}): check that it runs, that this machine may connect to it, and the URL"
            ) from error
        except (InvalidDicomError, AttributeError, KeyError, ValueError) as error:
            raise StoreError(f"{pacs} sent what is not DICOM when asked to {purpose}: {error!r:.100}") from error


def check_url(url: str) -> str:
    """The URL of a DICOMweb service without a slash at its end.

    Raises:
        SettingsError: It is of another kind, or holds credentials (which the message does not repeat).
    """
    parts = urlsplit(url)
    if parts.username or parts.password:
        raise SettingsError(f"the studies' URL holds credentials, and URLs are logged: set {CREDENTIALS} instead")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise SettingsError(f"studies are a folder or a DICOMweb URL, http(s)://host[:port]/path; got {url[:80]!r}")
    return url.rstrip("/")


def _value(entry: Mapping, tag: str) -> object:
    """The first value of an attribute in DICOM JSON, or None."""
    values = entry.get(tag, {}).get("Value") or [None]
    return values[0]


def _is_uid(text: str) -> bool:
    return len(text) <= MAX_UID_LENGTH and UID_PATTERN.fullmatch(text) is not None


def _description(n_instances: int) -> bytes:
    return f"{n_instances} DICOM instances".encode()


def _drop_outgrown(cached: Path, n_listed: int) -> None:
    """Let go of a cached image that was fetched while its series was still being sent to the PACS."""
    try:
        described = nib.load(cached).header["descrip"].tobytes().rstrip(b"\0")
    except FileNotFoundError:
        return
    except (ImageFileError, OSError, EOFError, zlib.error):
        described = b""  # damaged
    if described != _description(n_listed):
        cached.unlink(missing_ok=True)
