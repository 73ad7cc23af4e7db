"""MONAI Label's own SAM2 task in a process of its own, as it is, with random weights and without the network.

Its constructor downloads weights and configuration unless files of their names lie in its folder: so they are put
there. A click's time does not depend on what the weights are.
"""

import time
from pathlib import Path
from typing import Any

import sam2
import torch
from hydra.utils import instantiate
from monailabel.config import settings
from omegaconf import OmegaConf

# The smallest model of the package.
CONFIG = "configs/sam2.1/sam2.1_hiera_t.yaml"
_task: Any = None


def open_sam2(home: Path, n_threads: int) -> None:
    """Make the task, with all that it writes below `home`."""
    global _task
    settings.MONAI_SAM_MODEL_PT, settings.MONAI_SAM_MODEL_CFG = "sam2_tiny.pt", "sam2_tiny.yaml"
    settings.MONAI_LABEL_DATASTORE_CACHE_PATH = str(home)
    torch.set_num_threads(n_threads)
    source = Path(sam2.__file__).parent / CONFIG
    (home / "sam2_tiny.yaml").write_bytes(source.read_bytes())
    torch.manual_seed(0)
    network = instantiate(OmegaConf.load(source).model, _recursive_=True)
    torch.save({"model": network.state_dict()}, home / "sam2_tiny.pt")
    # Its import empties a cache folder and starts a thread.
    from monailabel.sam2.infer import Sam2InferTask

    _task = Sam2InferTask(model_dir=str(home))


def sam2_click(request: dict[str, Any]) -> float:
    """Seconds of one click, from the request to the written mask, as its server would wait for it."""
    began = time.perf_counter()
    file, _ = _task({**request, "device": "cpu", "result_extension": ".nrrd", "result_dtype": "uint8"})
    seconds = time.perf_counter() - began
    Path(file).unlink()
    return seconds
