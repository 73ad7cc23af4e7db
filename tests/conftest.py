"""Small fixtures that every part of the tests shares."""

import importlib
import json
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import numpy as np
import psutil
import pytest
import requests
from filelock import FileLock
from phantom_pictures import draw_phantoms
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from pydicom.valuerep import DSfloat
from weights_server import WeightsServer

from samcorrect.cli import main
from samcorrect.lib.loop.candidates import find_candidates
from samcorrect.lib.loop.engines import LOOPBACK_VARIABLE
from samcorrect.lib.loop.workspace import open_workspace
from samcorrect.lib.networks.runtimes import has_fast_bf16
from samcorrect.lib.settings import Settings

ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4.1"
ORTHANC = Path("/usr/sbin/Orthanc")
ORTHANC_DICOMWEB = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real images with expert masks; it is no part of the product."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the shared test data is not at {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Callable[..., Path]:
    """A function that gives a folder which all workers of a test session share and the first of them fills."""
    root = tmp_path_factory.getbasetemp()
    root = root if worker_id == "master" else root.parent

    def make(name: str, fill: Callable[[Path], None]) -> Path:
        folder, done = root / f"once-{name}", root / f"once-{name}.done"
        with FileLock(root / f"once-{name}.lock"):
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                fill(folder)
                done.touch()
        return folder

    return make


@pytest.fixture
def module(monkeypatch) -> Callable[[str], ModuleType]:
    """A function that imports a module of the folder benchmarks."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def oblique_affine() -> np.ndarray:
    """Voxels of 0.8 x 1.2 x 2.5 mm, turned by 20 degrees about z and then 10 about x, the first axis reversed."""
    a, b = np.deg2rad(20), np.deg2rad(10)
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3] = about_x @ about_z @ np.diag([-0.8, 1.2, 2.5])
    affine[:3, 3] = [31.0, -17.5, 240.0]
    return affine


@pytest.fixture
def run(capsys):
    """A function that runs a command and returns its exit code, output and errors; a traceback fails the test."""

    def run_command(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(word) for word in words])
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return code, said.out, said.err

    return run_command


@pytest.fixture
def make_studies(tmp_path: Path) -> Callable[..., Path]:
    """A function that fills a studies folder with small grey PNG images of the given names."""

    def make(*names: str, shape_yx: tuple[int, int] = (12, 16)) -> Path:
        studies = tmp_path / "studies"
        studies.mkdir(exist_ok=True)
        for number, name in enumerate(names):
            path = studies / name
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(number).integers(0, 256, shape_yx, dtype=np.uint8)
            Image.fromarray(pixels).save(path)
        return studies

    return make


# OpenVINO is tested where it belongs; everywhere else each state folder would export the encoder anew.
TORCH_RUNTIME = f"torch-{'bf16' if has_fast_bf16() else 'fp32'}"
os.environ["SAMCORRECT_SAM_RUNTIME"] = TORCH_RUNTIME
PHANTOM_SETTINGS = {
    "sam_runtime": TORCH_RUNTIME,
    "threads": 1,
    # Two agree with each other better than students with them, who then correct nothing.
    "n_candidates": 4,
    "student_steps": 60,
    "student_side_px": 32,
    "rounds": 1,
}


@dataclass(frozen=True)
class Phantoms:
    """Small pictures of two ellipses with their true label maps, all only to be read.

    Attributes:
        images: Studies folder with protocol.yaml.
        labels: True label maps of `images`.
        test_images, test_labels: The same, held out.
        cache: SAM's embeddings and candidates, shared by all tests of a worker.
        settings: Of every run on them.
    """

    images: Path
    labels: Path
    test_images: Path
    test_labels: Path
    cache: Path
    settings: Settings

    @property
    def options(self) -> list[str]:
        """The settings as options of the command line, without `rounds`."""
        names = (name for name in PHANTOM_SETTINGS if name != "rounds")
        return [word for name in names for word in (f"--{name.replace('_', '-')}", str(getattr(self.settings, name)))]


@pytest.fixture(scope="session")
def phantoms(made_once, tmp_path_factory: pytest.TempPathFactory) -> Phantoms:
    """Ten images and three test images."""
    root, cache = made_once("phantoms", draw_phantoms), tmp_path_factory.mktemp("phantoms") / "cache"
    folders = (root / name for name in ("images", "labels", "test-images", "test-labels"))
    return Phantoms(*folders, cache, settings=Settings(**PHANTOM_SETTINGS))


@pytest.fixture(scope="session")
def new_state(made_once, phantoms: Phantoms) -> Callable[[Path], Path]:
    """A function that makes a state folder which knows SAM's embeddings of the phantoms and nothing else.

    SAM sees each slice once in a test session.
    """

    def encode(folder: Path) -> None:
        for images in (phantoms.images, phantoms.test_images):
            given = {"state": folder / images.name, "protocol": phantoms.images / "protocol.yaml"}
            settings = phantoms.settings.model_copy(update=given)
            workspace = open_workspace(images, settings, cache_dir=folder / "cache")
            for row in workspace.store.ledger.images():
                find_candidates(workspace, workspace.store.read_image(row.id), Path(row.path).name)
            workspace.store.ledger.close()

    def link(source: str, target: str) -> None:
        with suppress(FileExistsError):  # what a test has made in this worker's cache already
            os.link(source, target)

    cache = made_once("encoding", encode) / "cache"
    shutil.copytree(cache, phantoms.cache, copy_function=link, dirs_exist_ok=True)

    def make(folder: Path) -> Path:
        shutil.copytree(phantoms.cache / "embeddings", folder / "cache" / "embeddings", copy_function=os.link)
        return folder

    return make


@pytest.fixture
def weights_server() -> Callable[..., AbstractContextManager[WeightsServer]]:
    """A function that serves a file's content as a context; see `WeightsServer` for the kinds."""

    @contextmanager
    def serve(content: bytes, **kind: object) -> Iterator[WeightsServer]:
        with WeightsServer(content, **kind) as server:
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
            thread.start()
            try:
                yield server
            finally:
                server.shutdown()
                thread.join()

    return serve


@pytest.fixture
def make_series() -> Callable[..., list[Dataset]]:
    """A function that makes the instances of a DICOM series: slices of stored values, along a RAS affine or without.

    Slice k is at the affine's k-th place along its third axis; further attributes go to every instance.
    """

    def make(slices: np.ndarray, affine: np.ndarray | None = None, **attributes: object) -> list[Dataset]:
        series_uid = attributes.pop("SeriesInstanceUID", generate_uid())
        study_uid = attributes.pop("StudyInstanceUID", generate_uid())
        frame_uid = generate_uid()
        instances = []
        for number, pixels in enumerate(slices):
            instance = Dataset()
            instance.SOPClassUID = attributes.get("SOPClassUID", "1.2.840.10008.5.1.4.1.1.4")
            instance.SOPInstanceUID = generate_uid()
            instance.SeriesInstanceUID, instance.StudyInstanceUID = series_uid, study_uid
            instance.PatientID, instance.PatientName, instance.Modality = "P-4711", "Doe^Jane", "MR"
            instance.Rows, instance.Columns = pixels.shape[:2]
            instance.SamplesPerPixel, instance.PhotometricInterpretation = 1, "MONOCHROME2"
            instance.BitsAllocated = instance.BitsStored = 8 * pixels.dtype.itemsize
            instance.HighBit = instance.BitsStored - 1
            instance.PixelRepresentation = int(pixels.dtype.kind == "i")
            instance.PixelData = pixels.tobytes()
            instance.InstanceNumber = number + 1
            if affine is not None:
                lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
                dx, dy, _ = np.linalg.norm(lps[:3, :3], axis=0)
                instance.FrameOfReferenceUID = frame_uid
                instance.PixelSpacing = [DSfloat(dy, auto_format=True), DSfloat(dx, auto_format=True)]
                cosines = [*lps[:3, 0] / dx, *lps[:3, 1] / dy]
                instance.ImageOrientationPatient = [DSfloat(c, auto_format=True) for c in cosines]
                position_mm = lps[:3, 3] + number * lps[:3, 2]
                instance.ImagePositionPatient = [DSfloat(mm, auto_format=True) for mm in position_mm]
            for keyword, value in attributes.items():
                setattr(instance, keyword, value)
            instance.preamble, instance.file_meta = bytes(128), FileMetaDataset()
            instance.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            instance.file_meta.MediaStorageSOPClassUID = instance.SOPClassUID
            instance.file_meta.MediaStorageSOPInstanceUID = instance.SOPInstanceUID
            instance.is_little_endian, instance.is_implicit_VR = True, False
            instances.append(instance)
        return instances

    return make


@pytest.fixture
def make_enhanced(make_series: Callable[..., list[Dataset]]) -> Callable[[list[int]], list[Dataset]]:
    """A function that makes an enhanced MR of four frames at z = 0, 3, 6, 9, stored in a given order."""

    def make(order: list[int]) -> list[Dataset]:
        # The frame at z holds z and has the slope 1 + z.
        stored = np.repeat(np.array(order, np.uint16) * 3, 80).reshape(1, 4 * 10, 8)
        (image,) = make_series(stored, SOPClassUID=ENHANCED_MR, NumberOfFrames=4, Rows=10)
        shared, per_frame = Dataset(), []
        shared.PixelMeasuresSequence = Sequence([Dataset()])
        shared.PixelMeasuresSequence[0].PixelSpacing = [0.5, 0.25]
        shared.PixelMeasuresSequence[0].SliceThickness = 3
        shared.PlaneOrientationSequence = Sequence([Dataset()])
        shared.PlaneOrientationSequence[0].ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        for k in order:
            item = Dataset()
            item.PlanePositionSequence = Sequence([Dataset()])
            item.PlanePositionSequence[0].ImagePositionPatient = [-5, 4, 3 * k]
            item.PixelValueTransformationSequence = Sequence([Dataset()])
            item.PixelValueTransformationSequence[0].RescaleSlope = 1 + 3 * k
            item.PixelValueTransformationSequence[0].RescaleIntercept = 0
            per_frame.append(item)
        image.FrameOfReferenceUID = generate_uid()
        image.SharedFunctionalGroupsSequence = Sequence([shared])
        image.PerFrameFunctionalGroupsSequence = Sequence(per_frame)
        return [image]

    return make


@pytest.fixture
def orthanc(tmp_path: Path) -> Callable[..., AbstractContextManager[str]]:
    """A function that runs an Orthanc of the test's own, as a context, and gives the URL of its DICOMweb service.

    Stopped and started again it is on the same port with what it held.
    """
    return partial(_run_orthanc, tmp_path / "orthanc", _free_port())


@pytest.fixture(scope="session")
def _shared_orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with _run_orthanc(tmp_path_factory.mktemp("pacs"), _free_port()) as url:
        yield url


@pytest.fixture
def pacs(_shared_orthanc: str) -> str:
    """The URL of the DICOMweb service of an Orthanc that runs and is empty."""
    root = _shared_orthanc.removesuffix("/dicom-web")
    for patient in requests.get(f"{root}/patients", timeout=30).json():
        requests.delete(f"{root}/patients/{patient}", timeout=30).raise_for_status()
    return _shared_orthanc


@pytest.fixture(scope="session")
def ray_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Ray cluster of two CPUs that listens on the loopback address alone."""
    # Not imported: Ray reads LOOPBACK_VARIABLE at its import, after the engine has set it.
    if find_spec("ray") is None:
        pytest.skip("Ray is not installed (extra ray)")
    folder, log = Path(tempfile.mkdtemp(prefix="ray")), tmp_path_factory.mktemp("ray") / "log"
    port, client_port = _free_port(), _free_port()
    command = ["ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}", "--num-cpus=2"]
    command += [f"--ray-client-server-port={client_port}", "--include-dashboard=false", "--disable-usage-stats"]
    environment = {**os.environ, LOOPBACK_VARIABLE: "0", "RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE": "1"}
    # Not below pytest's folder: paths of sockets are short.
    command += [f"--temp-dir={folder}", f"--object-store-memory={80 * 2**20}"]
    with log.open("w") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
        daemons: list[psutil.Process] = []
        try:
            _wait_for_port(client_port, process, log)
            daemons = psutil.Process(process.pid).children(recursive=True)
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(30)
            _, alive = psutil.wait_procs(daemons, timeout=10)
            for daemon in alive:
                daemon.kill()
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _run_orthanc(folder: Path, port: int, users: dict[str, str] | None = None) -> Iterator[str]:
    """An Orthanc that listens to this machine alone, by HTTP alone; `users` are those who may log in."""
    if not (ORTHANC.is_file() and ORTHANC_DICOMWEB.is_file()):
        pytest.skip(f"no Orthanc: {ORTHANC} and {ORTHANC_DICOMWEB} (Debian: apt install orthanc orthanc-dicomweb)")
    folder.mkdir(exist_ok=True)
    configuration = {
        "StorageDirectory": str(folder),
        "IndexDirectory": str(folder),
        "HttpPort": port,
        "RemoteAccessAllowed": False,
        "DicomServerEnabled": False,
        "AuthenticationEnabled": users is not None,
        "RegisteredUsers": users or {},
        "Plugins": [str(ORTHANC_DICOMWEB)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (folder / "orthanc.json").write_text(json.dumps(configuration), encoding="utf-8")
    with (folder / "log").open("a") as log:
        process = subprocess.Popen([ORTHANC, folder / "orthanc.json"], stdout=log, stderr=subprocess.STDOUT)
        try:
            _wait_for_port(port, process, folder / "log")
            yield f"http://127.0.0.1:{port}/dicom-web"
        finally:
            process.terminate()
            process.wait(30)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_for_port(port: int, process: subprocess.Popen, log: Path) -> None:
    deadline_s = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline_s:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError(f"it did not start:\n{log.read_text(encoding='utf-8')[-2000:]}")
