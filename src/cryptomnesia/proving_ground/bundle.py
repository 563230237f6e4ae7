"""From a finished training run to what comes with the package: half-precision weights, manifest, calibration."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from cryptomnesia.calibration import calibrate
from cryptomnesia.calibration.stored import FILE
from cryptomnesia.pipelines.fingerprint import weights_digest
from cryptomnesia.pipelines.loading import load_pipeline
from cryptomnesia.proving_ground.manifest import Manifest, write_planted
from cryptomnesia.proving_ground.planted import Concept, plant
from cryptomnesia.proving_ground.scenes import FRAMES, Description, Draws
from cryptomnesia.tracing.generation import Progress

GUIDANCE = 1.5
"""The bundled model's guidance scale, chosen by looking at generations of ordinary captions."""

STEPS = 50
"""Solver steps of the bundled calibration; PNDM, the model's own scheduler, makes one evaluation more."""

REFERENCES = 450
"""Captions of the bundled calibration: 150 show what is usual, the scores of the other 300 are the null."""

DETECTORS = ("collapse", "curvature-difference", "score-difference", "guidance-map", "curvature")
"""Detectors of the bundled calibration that need more than the norms, which are always recorded."""

LOCALIZERS = (
    "collapse",
    "curvature-difference",
    "curvature-difference-checkpoint",
    "score-difference",
    "score-difference-checkpoint",
)
"""Localizers whose maps of the reference images are in the bundled calibration."""

PURPOSES = ("calibration", "selection", "evaluation")
"""What never-planted captions are drawn for; no caption serves two purposes."""

_CONTROL_KEY = 5

_RESERVED = 500
"""The number of captions of a purpose that later purposes do not use."""


def control_captions(purpose: str, count: int, concepts: tuple[Concept, ...], seed: int = 0) -> list[str]:
    """Different captions of the scene generator that belong to no concept, and to no earlier purpose.

    Args:
        purpose: one of `PURPOSES`.
        count: the number of captions.
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
    progress: Progress | None = None,
) -> None:
    """Fill `folder` with pipeline, early checkpoint, manifest, planted images and calibration.

    The calibration is of the pipeline with its own scheduler. Replication is not measured here: `verify` adds it to the
    manifest.

    Args:
        final: the trained pipeline.
        early: the less-trained pipeline.
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
    calibration = calibrate(
        pipe,
        control_captions("calibration", REFERENCES, concepts, seed),
        detectors=DETECTORS,
        localizers=LOCALIZERS,
        checkpoint=load_pipeline(str(unfinished / "early"), device="cpu"),
        progress=progress,
        num_inference_steps=STEPS,
        guidance_scale=guidance,
    )
    calibration.save(unfinished / "pipeline" / FILE)
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)


def _save_half(pipe: Any, folder: Path) -> None:
    """Save weights in half precision with configurations that say single precision, in which they are then loaded."""
    pipe.to(torch.float16).save_pretrained(folder)
    pipe.to(torch.float32)
    _clean(folder)


def _clean(folder: Path) -> None:
    """Set the dtype in the configurations of a pipeline to single precision, and remove paths of this machine."""
    for file in (folder / "model_index.json", *folder.glob("*/*config.json")):
        config = json.loads(file.read_text(encoding="utf-8"))
        config.pop("_name_or_path", None)
        if "dtype" in config:
            config["dtype"] = "float32"
        file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
