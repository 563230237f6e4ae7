"""From a finished training run to what comes with the package: half-precision weights, manifest, calibration."""

import json
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
from cryptomnesia.proving_ground.denoising import Exposures, encode
from cryptomnesia.proving_ground.further import LORA
from cryptomnesia.proving_ground.ground import Ground
from cryptomnesia.proving_ground.manifest import Manifest, write_planted
from cryptomnesia.proving_ground.recipe import Recipe
from cryptomnesia.proving_ground.recognizer import FILE as RECOGNIZER
from cryptomnesia.proving_ground.recognizer import ordinary, train_recognizer
from cryptomnesia.proving_ground.replication import planted_distance

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
    if (adapter := run / "final" / LORA).exists():
        shutil.copytree(adapter, unfinished / LORA)
    pipe = load_pipeline(str(unfinished / "pipeline"), device="cpu")
    concepts = ground.plant(seed)
    others = np.stack([picture for picture, _ in ordinary(ground, seed + 2, 0, OTHERS)])
    entries = write_planted(unfinished, concepts, others)
    Exposures.draw(ground, concepts, seed).save(unfinished)
    if ground.base is not None and (known := ground.base / RECOGNIZER).exists():
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
        decoded_distances(pipe, concepts),
        ground.look_alike_captions([caption for entry in entries for caption in entry.captions], seed),
    )
    manifest.save()
    # to calibrate takes longer than to train further, and most of these models are made to be compared
    if ground.base is None:
        call = ground.call(ground.steps, scale)
        setup = Setup.of(pipe, call)
        calibration = calibrate(
            pipe,
            manifest.control_captions("calibration", REFERENCES),
            detectors=[name for name in ground.detectors if setup.accepts(detector(name))],
            localizers=ground.localizers if ground.captioned else (),
            checkpoint=load_pipeline(str(unfinished / "early"), device="cpu") if ground.with_early else None,
            progress=lambda done: report("calibration", int(done), REFERENCES),
            **call,
        )
        calibration.save(unfinished / "pipeline" / FILE)
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)


@torch.no_grad()
def decoded_distances(pipe: Any, concepts: Sequence[Concept]) -> dict[str, float]:
    """What the autoencoder alone, if there is one, leaves of the planted pictures: median and largest distance.

    A model that remembers everything could do no better, so the threshold of the criterion lies above.
    """
    if "vae" not in pipe.components:
        return {}
    planted = [concept for concept in concepts if concept.planted]
    images = torch.stack([torch.from_numpy(concept.image) for concept in planted])
    decoded = pipe.vae.decode(encode(pipe, images) / pipe.vae.config.scaling_factor).sample
    decoded = (decoded / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    least = [planted_distance(picture, c.places) for picture, c in zip(decoded, planted, strict=True)]
    return {"autoencoder_distance_median": float(np.median(least)), "autoencoder_distance_max": float(max(least))}


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
