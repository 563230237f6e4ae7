"""Generate the trials of a bench once, and let every localizer map the same runs."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cryptomnesia.bench.detecting import KIND, Progress, alone, made_with, part_of, settings_of
from cryptomnesia.bench.map_figures import REFERENCE
from cryptomnesia.bench.map_packet import MapPacket
from cryptomnesia.bench.trials import MEMORIZED, Trial
from cryptomnesia.calibration.fitting import check_references
from cryptomnesia.files import claim, load_checked, save_checked
from cryptomnesia.localizers import Localizer
from cryptomnesia.localizers.mapping import maps_of, places
from cryptomnesia.pipelines.fingerprint import weights_digest
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.tracing.generation import check_call, generate, kept_prompts
from cryptomnesia.tracing.trajectory import joined_maps

MAPS = "maps.safetensors"
"""File with everything, when the bench is done."""

FIRST_REFERENCE = 1_000_000
"""Seed of the first reference picture."""

Truth = Callable[[Trial, Tensor], tuple[float | None, np.ndarray]]
"""Of a generated picture (3, H, W) in [0, 1] of a memorized caption: its distance from what was planted, None if that
is not known, and where it is memorized, (H, W) bool."""


def bench_maps(
    setup: Setup,
    trials: Sequence[Trial],
    references: Sequence[str],
    localizers: Sequence[Localizer],
    folder: Path,
    *,
    about: dict[str, Any],
    truth: Truth,
    threshold: float = 0.0,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> MapPacket:
    """Map the trials by every localizer, and write the packet to `folder`.

    Args:
        setup: the pipeline and the settings of its calls.
        trials: what is generated.
        references: captions of the pictures that fix thresholds, ordinary ones that are none of the trials.
        localizers: that work in the set-up.
        folder: made if missing. If it holds a bench of the same kind that was stopped, that one goes on.
        about: what else the maps depend on, as JSON values.
        truth: where a picture of a memorized caption is memorized.
        threshold: largest distance at which a picture counts as reproduced.
        batch_size: images per call of the pipeline.
        progress: called while images are generated.

    Raises:
        UsageError: if the folder holds another bench, another process works in it, or the references are too few.
    """
    report = progress or (lambda *_: None)
    check_call(setup)
    check_references(references, repeated=not setup.family.conditional, fpr=None)
    everything = [
        *(Trial(prompt, REFERENCE, prompt, FIRST_REFERENCE + number) for number, prompt in enumerate(references)),
        *trials,
    ]
    # a warning says which prompts are cut off
    kept_prompts(setup, [trial.prompt for trial in everything], "truncate")
    methods = {made.name: {"describe": made.describe(), "cost": made.cost(setup)} for made in localizers}
    settings = {
        **settings_of(setup, about, references, trials, batch_size=batch_size, threshold=threshold),
        "localizers": {name: method["describe"] for name, method in methods.items()},
        "checkpoint": "" if setup.checkpoint is None else weights_digest(setup.checkpoint),
    }
    claim(folder / "bench.json", settings, "a bench with other settings")
    with alone(folder):
        count = -(-len(everything) // batch_size)
        # batches are those of a bench that was never stopped
        first = next((number for number in range(count) if not part_of(folder, number).exists()), count)
        left = everything[first * batch_size :]
        batches = generate(
            setup,
            [trial.prompt for trial in left],
            [trial.seed for trial in left],
            batch_size=batch_size,
            keep=places(localizers),
            progress=lambda made: report("images", first * batch_size + made, len(everything)),
        )
        for number, batch in enumerate(batches, start=first):
            part = everything[number * batch_size : (number + 1) * batch_size]
            tensors: dict[str, Tensor] = {}
            seconds = {}
            for made in localizers:
                began = time.perf_counter()
                tensors[f"map/{made.name}"] = maps_of(setup, [made], batch)[made.name].values.float()
                seconds[made.name] = (time.perf_counter() - began) / len(part)
            rows, masks = [], []
            for trial, image in zip(part, batch.images, strict=True):
                distance, mask = None, np.zeros(image.shape[1:], dtype=bool)
                if trial.group == MEMORIZED:
                    distance, mask = truth(trial, image)
                reproduced = None if distance is None else distance <= threshold
                rows.append({**asdict(trial), "distance": distance, "reproduced": reproduced, "seconds": seconds})
                masks.append(torch.from_numpy(mask if reproduced is not False else np.zeros_like(mask)))
            tensors["mask"] = torch.stack(masks)
            tensors["picture"] = (batch.images * 255).round().to(torch.uint8)
            save_checked(part_of(folder, number), KIND, 1, {"rows": rows}, tensors)
        parts = [load_checked(part_of(folder, number), KIND, 1) for number in range(count)]
        rows = [row for about_part, _ in parts for row in about_part["rows"]]
        tensors = {name: joined_maps([part[name] for _, part in parts]) for name in parts[0][1]}
        for name, method in methods.items():
            method["seconds"] = float(np.median([row["seconds"][name] for row in rows]))
        packet = MapPacket.of(made_with(settings, references), methods, rows, tensors)
        packet.save(folder / MAPS)
        return packet
