"""From a finished training run to what comes with the package: half-precision weights, manifest, calibration."""

import filecmp
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cryptomnesia.calibration import calibrate
from cryptomnesia.calibration.stored import FILE
from cryptomnesia.detectors import detector
from cryptomnesia.pipelines.fingerprint import weights_digest
from cryptomnesia.pipelines.loading import load_pipeline
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.proving_ground.concepts import Concept
from cryptomnesia.proving_ground.denoising import Exposures, decoded_distances
from cryptomnesia.proving_ground.further import LORA
from cryptomnesia.proving_ground.ground import Ground
from cryptomnesia.proving_ground.manifest import Manifest, write_planted
from cryptomnesia.proving_ground.recipe import Recipe
from cryptomnesia.proving_ground.recognizer import CAPTIONS, Recognizer, ordinary, train_recognizer
from cryptomnesia.proving_ground.recognizer import FILE as RECOGNIZER
from cryptomnesia.tracing.generation import Progress

REFERENCES = 450
"""Captions of the bundled calibration: 150 show what is usual, the scores of the other 300 are the null."""

OTHERS = 1_000
"""Ordinary pictures, of which none may be a copy of a planted one."""


def bundle(
    ground: Ground,
    run: Path,
    folder: Path,
    recipe: Recipe | None = None,
    *,
    progress: Callable[[str, int, int], None] | None = None,
) -> None:
    """Fill `folder` with what comes with the package, from the folder of a finished training.

    That is the pipeline, the early checkpoint unless the ground leaves it out, the manifest with the planted pictures,
    exposures and look-alikes, the recognizer if there are captions, and a calibration of the pipeline with its own
    scheduler. Replication is not measured here: `verify` adds it to the manifest. A model that was trained further has
    the adapter besides, if there is one, and no calibration.

    Args:
        ground: the proving ground.
        run: folder of the training.
        folder: replaced if it exists.
        recipe: of the training, the ground's by default.
        progress: called with (what, done, in all).
    """
    report = progress or (lambda *_: None)
    seed = (recipe or ground.recipe).seed
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    for name, source in (("pipeline", "final"), ("early", "early")):
        if name == "pipeline" or ground.with_early:
            _save_half(load_pipeline(str(run / source), device="cpu"), unfinished / name)
    _share(unfinished / "pipeline", unfinished / "early")
    if (adapter := run / "final" / LORA).exists():
        shutil.copytree(adapter, unfinished / LORA)
    pipe = load_pipeline(str(unfinished / "pipeline"), device="cpu")
    concepts = ground.plant(seed)
    others = np.stack([picture for picture, _ in ordinary(ground, seed + 2, 0, OTHERS)])
    entries = write_planted(unfinished, concepts, others)
    Exposures.draw(ground, concepts, seed).save(unfinished)
    judged_by = ground.like.bundle if ground.like is not None else ground.base
    if judged_by is not None and (known := judged_by / RECOGNIZER).exists():
        shutil.copy(known, unfinished)
    elif ground.captioned:
        recognizer = train_recognizer(ground, seed, progress=lambda done, total: report("recognizer", done, total))
        recognizer.save(unfinished)
    scale = ground.guidances[0]
    manifest = Manifest(
        unfinished,
        ground.name,
        weights_digest(pipe),
        seed,
        scale,
        ground.steps,
        entries,
        bounds(ground, pipe, concepts, unfinished, seed),
        ground.look_alike_captions([caption for entry in entries for caption in entry.captions], seed),
    )
    manifest.save()
    # to calibrate takes longer than to train further, and most of these models are made to be compared
    if ground.base is None:
        calibrate_bundle(ground, unfinished, lambda done: report("calibration", int(done), REFERENCES))
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)


def _share(first: Path, second: Path) -> None:
    """Make files of the second folder that are those of the first, such as an autoencoder, links to them."""
    for path in sorted(second.rglob("*.safetensors")):
        other = first / path.relative_to(second)
        if other.is_file() and filecmp.cmp(path, other, shallow=False):
            path.unlink()
            path.symlink_to(os.path.relpath(other, path.parent))


def calibrate_bundle(ground: Ground, folder: Path, progress: Progress | None = None) -> None:
    """Make the calibration of a bundle's model with its own scheduler and guidance scale."""
    manifest = Manifest.load(folder)
    pipe = load_pipeline(str(folder / "pipeline"), device="cpu")
    call = ground.call(manifest.steps, manifest.guidance)
    setup = Setup.of(pipe, call)
    calibrate(
        pipe,
        manifest.control_captions("calibration", REFERENCES),
        detectors=[name for name in ground.detectors if setup.accepts(detector(name))],
        localizers=ground.localizers if ground.captioned else (),
        checkpoint=load_pipeline(str(folder / "early"), device="cpu") if ground.with_early else None,
        progress=progress,
        **call,
    ).save(folder / "pipeline" / FILE)


def bounds(ground: Ground, pipe: Any, concepts: Sequence[Concept], folder: Path, seed: int) -> dict[str, float]:
    """The figures between which those of a model lie, by name; `Manifest.bounds` has them.

    With an autoencoder, these are the median and the largest distance that it alone leaves of the planted pictures.
    With captions, they are what the recognizer in `folder` says of as many of the ground's own pictures as it judges of
    a model's.
    """
    found: dict[str, float] = {}
    if "vae" in pipe.components:
        decoded = decoded_distances(pipe, [concept.places for concept in concepts if concept.planted])
        found |= {
            "autoencoder_distance_median": float(np.median(decoded)),
            "autoencoder_distance_max": float(decoded.max()),
        }
    if ground.captioned:
        recognizer = Recognizer.load(folder)
        # it was trained on pictures of the seeds before
        pictures, captions = zip(*ordinary(ground, seed + 3, 0, CAPTIONS), strict=True)
        shown = np.stack(pictures) / 255.0
        found |= {
            "recognized_of_ground": float(recognizer.recognizes(shown, captions).mean()),
            "frechet_of_ground": recognizer.frechet(shown),
        }
    return found


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
