"""The settings of samcorrect, parsed once from --conf, the command line and SAMCORRECT_* into a frozen model."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from samcorrect.lib.errors import SettingsError

ENVIRONMENT_PREFIX = "SAMCORRECT_"
# Keys of --conf that belong to the host (monailabel/interfaces/app.py:125).
HOST_KEYS = frozenset({"server_mode"})

# A URL can hold a password, so no message shows one that is wrong.
URL_SETTINGS = frozenset({"ledger_url", "tracking_uri"})
RAY_ADDRESS = re.compile(r"(ray://)?[^\s:/@]+:\d{1,5}")

TRAINABLE_STATES = ("approved", "corrected", "pseudo")
# Parts of the preset samcorrect that can be switched off, to see what each is worth.
MODULES = ("search", "ask_again", "correct", "image_weights", "pixel_weights", "largest_piece")

EngineName = Literal["processes", "ray"]
PresetName = Literal["samcorrect", "huang2023"]
StudentDims = Literal["2d", "2.5d", "3d"]
TrackingName = Literal["none", "tensorboard", "mlflow"]
SamRuntime = Literal["auto", "torch-fp32", "torch-bf16", "openvino-fp32", "openvino-bf16", "onnx-fp32", "cuda"]


class Settings(BaseModel):
    """Everything that can be set. Names are those of --conf; `SAMCORRECT_<NAME>` in the environment sets the same."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    protocol: Path | None = Field(None, description="protocol file; default <studies>/protocol.yaml")
    state: Path | None = Field(None, description="folder of ledger, labels and models; default <studies>/.samcorrect")
    ledger_url: str | None = Field(
        None,
        description="PostgreSQL database for the ledger: postgresql://USER@HOST:PORT/NAME; its password comes from "
        "PGPASSWORD or ~/.pgpass, never from the URL",
    )
    preset: PresetName = Field("samcorrect", description="which method the rounds follow")
    rounds: int = Field(2, ge=1, le=20, description="rounds of score, correct and retrain, at most")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of every random choice")
    threads: int = Field(
        0, ge=0, le=256, description="CPU threads; 0 takes one per core, and all but one of them for a training"
    )
    workers: int = Field(
        0,
        ge=0,
        le=256,
        description="processes that prompt images; 0 takes one per CPU thread where there are images and memory enough "
        "(on a Ray cluster one per CPU), 1 works in the process itself",
    )
    engine: EngineName = Field(
        "processes",
        description="where the workers run: processes (of this machine) or ray (a running Ray cluster, all of whose "
        "machines have to see studies and state folder under the same paths)",
    )
    ray_address: str | None = Field(None, description="of the Ray cluster: HOST:PORT or ray://HOST:PORT")
    sam_model: str = Field("lite_medsam", description="SAM model, one that `samcorrect models list` shows")
    sam_weights: Path | None = Field(None, description="weights file of sam_model; default where it was brought to")
    sam_runtime: SamRuntime = Field("auto", description="how SAM's encoder runs; auto takes the fastest installed")
    embedding_cache_mb: int = Field(4096, ge=1, le=2**30, description="size of the cache of SAM's embeddings, in MiB")
    n_candidates: int = Field(16, ge=1, le=64, description="prompt boxes tried for each structure")
    student_steps: int = Field(1200, ge=1, le=100_000, description="optimiser steps of the student")
    judge_steps: int = Field(
        400,
        ge=1,
        le=100_000,
        description="optimiser steps of the many students that judge and correct labels; at most student_steps",
    )
    student_batch_size: int = Field(8, ge=1, le=256, description="slices in a training batch")
    student_side_px: int = Field(128, ge=32, le=512, multiple_of=16, description="largest side of the student's frame")
    student_learning_rate: float = Field(2e-3, gt=0, le=1, description="peak learning rate")
    student_dims: StudentDims = Field(
        "2d", description="what the student sees of a volume: single slices, each with its neighbours, or blocks"
    )
    student_early_stop: bool = Field(
        False,
        description="hold out a tenth of the trusted cases of a training and stop once it agrees no better with them",
    )
    student_start: Literal["scratch", "promoted"] = Field(
        "scratch", description="weights that a retraining starts from: random ones or those of the student in use"
    )
    tracking: TrackingName = Field(
        "tensorboard", description="where the curves of trainings go; tensorboard: files below <state>/tensorboard"
    )
    tracking_uri: str | None = Field(
        None, validate_default=True, description="tracking server or database of mlflow, e.g. http://HOST:PORT"
    )
    train_on: str = Field(
        "approved,corrected,pseudo",
        description="states of the labels that a student learns from, of approved, corrected and pseudo; all but "
        "approved ones by their quality, rejected ones never",
    )
    modules: str = Field(
        ",".join(MODULES),
        description="parts of the preset samcorrect at work: search (of prompts; without it, the box as given), "
        "ask_again (SAM, with the boxes that students see), correct (labels), image_weights (trainings draw doubtful "
        "labels less often, and the student what people approved more often), pixel_weights (they ignore pixels around "
        "doubtful structures), largest_piece (students give up stray pieces of a structure whose labels are in one "
        "piece)",
    )
    huang_noise_rate: float = Field(
        0.75, ge=0, le=1, description="share of the labels that the preset huang2023 takes for noisy"
    )
    audit_share: float = Field(0.2, ge=0, le=1, description="share of the queue that serves random images")
    lease_s: float = Field(1800, gt=0, description="seconds an image stays reserved for one annotator")
    volume_cache_mb: int = Field(1024, ge=0, le=2**20, description="memory for images read lately, in MiB")
    warm_slices: int = Field(
        2, ge=0, le=64, description="slices on each side of a click that are encoded ahead; 0 encodes nothing ahead"
    )
    max_upload_mb: int = Field(4096, ge=1, le=2**20, description="largest upload that the server takes, in MiB")

    @property
    def steps_of_judges(self) -> int:
        """Optimiser steps of a student that judges or corrects labels."""
        return min(self.judge_steps, self.student_steps)

    @property
    def states_to_train_on(self) -> tuple[str, ...]:
        """`train_on`, in the order of TRAINABLE_STATES."""
        return tuple(self.train_on.split(","))

    @property
    def n_prompts(self) -> int:
        """Prompt boxes of each structure: `n_candidates`, or the box as given alone without the module search."""
        return self.n_candidates if self.has_module("search") else 1

    def has_module(self, module: str) -> bool:
        """Whether one of MODULES is at work."""
        return module in self.modules.split(",")

    @field_validator("train_on")
    @classmethod
    def _check_train_on(cls, states: str) -> str:
        return _some_of(TRAINABLE_STATES, states)

    @field_validator("modules")
    @classmethod
    def _check_modules(cls, modules: str) -> str:
        return _some_of(MODULES, modules)

    @field_validator("tracking_uri")
    @classmethod
    def _check_tracking_uri(cls, uri: str | None, told: ValidationInfo) -> str | None:
        if (told.data.get("tracking") == "mlflow") != (uri is not None):
            raise ValueError("it and `tracking mlflow` are wanted together, or neither of them")
        if uri is not None and urlsplit(uri).password is not None:
            raise ValueError("no password is wanted in it: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD")
        return uri

    @field_validator("ray_address")
    @classmethod
    def _check_ray_address(cls, address: str | None, info: ValidationInfo) -> str | None:
        if address is None:
            return None
        if not RAY_ADDRESS.fullmatch(address):
            raise ValueError("HOST:PORT or ray://HOST:PORT is wanted")
        if info.data.get("engine") == "processes":
            raise ValueError("an address is of a Ray cluster: set the engine to ray too")
        return address

    @field_validator("ledger_url")
    @classmethod
    def _check_ledger_url(cls, url: str | None) -> str | None:
        parts = urlsplit(url or "postgresql:")
        if parts.scheme != "postgresql" or parts.password is not None:
            raise ValueError(
                "postgresql://USER@HOST:PORT/NAME is wanted, and no password in it: set PGPASSWORD instead"
            )
        return url


def _some_of(known: tuple[str, ...], text: str) -> str:
    """Names with commas between them, in the order of `known`."""
    given = {name.strip() for name in text.split(",")}
    if not given <= set(known):
        raise ValueError(f"some of {', '.join(known)} are wanted, with commas between them")
    return ",".join(name for name in known if name in given)


def load_settings(given: Mapping[str, object], environment: Mapping[str, str] | None = None) -> Settings:
    """Merge the settings given on the command line or in --conf over those of the environment.

    Args:
        given: Name to value; None means not given.
        environment: Defaults to the process environment.

    Raises:
        SettingsError: One message that lists every unknown key and bad value.
    """
    environment = os.environ if environment is None else environment
    # An empty variable is how containers say "not set"; as a path it would be the working directory.
    values: dict[str, object] = {
        key.removeprefix(ENVIRONMENT_PREFIX).lower(): value
        for key, value in environment.items()
        if key.startswith(ENVIRONMENT_PREFIX) and value
    }
    values |= {key: value for key, value in given.items() if value is not None and key not in HOST_KEYS}
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        faults = []
        for fault in error.errors():
            name = ".".join(map(str, fault["loc"]))
            if fault["type"] == "extra_forbidden":
                faults.append(f"{name}: no such setting; known are {', '.join(Settings.model_fields)}")
            else:
                got = "" if name in URL_SETTINGS else f" (got {fault['input']!r:.80})"
                faults.append(f"{name}: {fault['msg']}{got}")
        lines = "\n".join(f"  - {fault}" for fault in faults)
        raise SettingsError(f"{len(faults)} fault(s) in the settings:\n{lines}") from error
