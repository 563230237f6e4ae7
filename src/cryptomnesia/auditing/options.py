"""What an audit is told: flags over environment over file, and nothing that it does not know."""

import os
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cryptomnesia.errors import UsageError

PREFIX = "CRYPTOMNESIA_"
"""Of the environment variables: `CRYPTOMNESIA_STEPS=25`."""


_ONE = (
    {"guidance-last", "score-difference", "guidance-map"},
    {"curvature", "curvature-difference"},
)
"""Detectors and maps that look at the same: how far apart the branches are at the last evaluation, and the conditional
one's Jacobian at the one before."""


class Settings(BaseModel):
    """Everything that a run depends on, apart from the machine.

    Attributes:
        model: a local diffusers folder, a hub id, or `bundled`.
        prompts: a file of prompts.
        images_per_prompt: images of every prompt.
        seed: of the first image; every further image of the run has the next one, so that prompts are independent.
        steps: of the solver.
        guidance: scale; 7.5, or the bundled model's own, when None.
        height: of the pictures in pixels, the model's own when None.
        width: likewise.
        negative_prompt: for every image.
        scheduler: a name of `cryptomnesia.pipelines.loading.SCHEDULERS`.
        dtype: of the weights: `float32`, `float16` or `bfloat16`.
        calibration: a file that `calibrate` made.
        maps: a file that `calibrate-maps` made, for `map`.
        references: a file of captions that are not memorized, from which both are made when they are not given.
        detector: whose score is a suspicion.
        rate: share of ordinary images of which it is one.
        map: of flagged images.
        pixel_rate: share of the pixels of ordinary pictures above a mask's threshold.
        mitigate: whether to try the mitigation on flagged images.
        index: of training images, made by `index build`.
        training_images: a folder of them, of which an index is made in the run.
        sscd: the descriptor's TorchScript or ONNX file, if the index was built with it.
        fail_on: the level of evidence that counts against the model.
        max_rate: share of prompts that may reach it.
        batch_size: images per call of the pipeline.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    prompts: Path
    images_per_prompt: int = Field(1, ge=1)
    seed: int = Field(0, ge=0, le=2**62)
    steps: int = Field(50, ge=1)
    guidance: float | None = None
    height: int | None = Field(None, ge=1)
    width: int | None = Field(None, ge=1)
    negative_prompt: str | None = None
    scheduler: str = "ddim"
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    calibration: Path | None = None
    maps: Path | None = None
    references: Path | None = None
    detector: str = "drift"
    rate: float = Field(0.01, gt=0, lt=1)
    map: str = "collapse"
    pixel_rate: float = Field(0.05, gt=0, lt=1)
    mitigate: bool = True
    index: Path | None = None
    training_images: Path | None = None
    sscd: Path | None = None
    fail_on: Literal["suspected", "corroborated", "confirmed"] = "corroborated"
    max_rate: float = Field(0.0, ge=0, lt=1)
    batch_size: int = Field(16, ge=1)

    @model_validator(mode="after")
    def _together(self) -> "Settings":
        if self.references is not None and (self.calibration is not None or self.maps is not None):
            raise ValueError("references make both calibrations anew; give either them or calibration and maps")
        if self.index is not None and self.training_images is not None:
            raise ValueError("an index of training images is there already; give either index or training_images")
        if said := same(self.detector, self.map):
            raise ValueError(f"{said}; give another detector or map")
        if self.fail_on == "confirmed" and self.index is None and self.training_images is None:
            raise ValueError("nothing can be confirmed without training images; give index or training_images")
        return self


def same(detector: str, map_: str) -> str:
    """Why a map is no second signal beside a detector, "" where it is one."""
    if detector == map_ or any({detector, map_} <= each for each in _ONE):
        return f"the detector {detector} says the same as the map {map_}, which is then no second signal"
    return ""


def resolve(flags: dict[str, Any], file: Path | None = None, environment: dict[str, str] | None = None) -> Settings:
    """The settings of a run.

    Args:
        flags: what the command line gave, None for what it did not; the strongest.
        file: a TOML file with the same keys, the weakest.
        environment: variables, those of the process by default.

    Raises:
        UsageError: naming every key that is unknown or has a value that cannot be.
    """
    given: dict[str, Any] = {}
    if file is not None:
        try:
            given |= tomllib.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UsageError(f"cannot read the settings {file} ({error}); give a TOML file") from None
    variables = os.environ if environment is None else environment
    given |= {name.removeprefix(PREFIX).lower(): value for name, value in variables.items() if name.startswith(PREFIX)}
    given |= {name: value for name, value in flags.items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        said = [
            f"{'.'.join(map(str, each['loc'])) or 'settings'}: {each['msg'].removeprefix('Value error, ')}"
            + ("" if each["type"] in ("missing", "value_error") else f", got {str(each['input'])[:60]}")
            for each in error.errors()
        ]
        known = ", ".join(Settings.model_fields)
        unknown = any(each["type"] == "extra_forbidden" for each in error.errors())
        raise UsageError("; ".join(said) + (f"; known are {known}" if unknown else "")) from None
