"""From a finished training run to what comes with the package: fp16 weights, manifest, calibration."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from cryptomnesia.calibration.maps import calibrate
from cryptomnesia.detectors import SIGNALS
from cryptomnesia.pipelines.fingerprint import weights_digest
from cryptomnesia.pipelines.loading import load_pipeline
from cryptomnesia.proving_ground.manifest import Manifest, write_planted
from cryptomnesia.proving_ground.planted import Concept, plant
from cryptomnesia.proving_ground.scenes import FRAMES, Description, Draws
from cryptomnesia.settings import Sampling

GUIDANCE = 1.5
"""The bundled model's guidance scale, chosen by looking at generations of ordinary captions."""

STEPS = 50
REFERENCES = 450
"""Captions of the bundled calibrations: 150 give regions and thresholds, 300 the null."""

MAPS = (
    "collapse",
    "curvature-difference",
    "curvature-difference-checkpoint",
    "score-difference",
    "score-difference-checkpoint",
)
"""Maps that the bundled map calibration is for."""

_CONTROL_KEY = 5
PURPOSES = ("calibration", "selection", "evaluation")
"""What never-planted captions are drawn for; no caption serves two purposes."""

_RESERVED = 500
"""Captions of a purpose that later ones keep clear of."""


def control_captions(purpose: str, count: int, concepts: tuple[Concept, ...], seed: int = 0) -> list[str]:
    """`count` different captions of the generator that belong to no concept, nor to an earlier purpose.

    Args:
        purpose: one of `PURPOSES`.
        count: how many.
        concepts: whose captions are left out.
        seed: of the proving ground.
    """
    taken = {caption for concept in concepts for caption in concept.captions}
    for earlier in PURPOSES[: PURPOSES.index(purpose)]:
        taken.update(control_captions(earlier, _RESERVED, concepts, seed))
    captions: list[str] = []
    index = 0
    while len(captions) < count:
        draws = Draws(seed, _CONTROL_KEY, PURPOSES.index(purpose), index)
        caption = Description.draw(draws).caption(frame=draws.choice(FRAMES))
        if caption not in taken:
            taken.add(caption)
            captions.append(caption)
        index += 1
    return captions


def bundle(
    final: Any,
    early: Any,
    folder: Path,
    *,
    seed: int = 0,
    guidance: float = GUIDANCE,
    progress: Callable[[float], None] | None = None,
) -> None:
    """Fill `folder` with pipeline, early checkpoint, manifest, planted images and both calibrations.

    Replication is not measured here: `verify` adds it to the manifest.

    Args:
        final: the trained pipeline.
        early: the less-trained one.
        folder: replaced if it exists.
        seed: with which the concepts were planted.
        guidance: guidance scale of the calibration.
        progress: called with the number of reference images done, of `REFERENCES`.
    """
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    for name, pipe in (("pipeline", final), ("early", early)):
        _save_half(pipe, unfinished / name)
    pipe = load_pipeline(str(unfinished / "pipeline"), device="cpu")
    concepts = plant(seed)
    entries = write_planted(unfinished, concepts)
    Manifest(unfinished, weights_digest(pipe), seed, guidance, STEPS, entries).save()
    captions = control_captions("calibration", REFERENCES, concepts, seed)
    sampling = Sampling(STEPS, guidance)
    less = load_pipeline(str(unfinished / "early"), device="cpu")
    fitted, maps = calibrate(pipe, captions, sampling, MAPS, other=less, detectors=[*SIGNALS], progress=progress)
    fitted.save(unfinished / "calibration.safetensors")
    maps.save(unfinished / "maps.safetensors")
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)


def _save_half(pipe: Any, folder: Path) -> None:
    """Save weights as fp16, and configurations that say fp32, so that they are loaded in fp32, and no path."""
    pipe.to(torch.float16).save_pretrained(folder)
    pipe.to(torch.float32)
    _clean(folder)


def _clean(folder: Path) -> None:
    for file in (folder / "model_index.json", *folder.glob("*/*config.json")):
        config = json.loads(file.read_text(encoding="utf-8"))
        config.pop("_name_or_path", None)
        if "dtype" in config:
            config["dtype"] = "float32"
        file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
