"""Generate the trials of a bench once, and let every localizer map the same runs."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cryptomnesia.bench.base import Bench
from cryptomnesia.bench.detecting import KIND, PARTS
from cryptomnesia.bench.map_figures import REFERENCE
from cryptomnesia.bench.map_packet import MapPacket
from cryptomnesia.bench.trials import MEMORIZED, Trial
from cryptomnesia.calibration.fitting import check_references
from cryptomnesia.files import load_checked, save_checked
from cryptomnesia.localizers import Localizer
from cryptomnesia.localizers.mapping import maps_of, places
from cryptomnesia.parts import Report, Stage
from cryptomnesia.pipelines.fingerprint import weights_digest
from cryptomnesia.tracing.generation import check_call, generate, kept_prompts
from cryptomnesia.tracing.trajectory import joined_maps

MAPS = "maps.safetensors"
"""File with everything, when the bench is done."""

FIRST_REFERENCE = 1_000_000
"""Seed of the first reference picture."""

Truth = Callable[[Trial, Tensor], tuple[float | None, np.ndarray]]
"""Of a generated picture (3, H, W) in [0, 1] of a memorized caption: its distance from what was planted, None if that
is not known, and where it is memorized, (H, W) bool."""


@dataclass(kw_only=True)
class MapBench(Bench[MapPacket]):
    """Localizers, which map the same runs.

    Attributes:
        references: captions of the pictures that fix thresholds, ordinary ones that are none of the trials.
        localizers: that work in the set-up.
        truth: where a picture of a memorized caption is memorized.
        threshold: largest distance at which a picture counts as reproduced.
    """

    localizers: Sequence[Localizer]
    truth: Truth
    threshold: float = 0.0

    @cached_property
    def _everything(self) -> list[Trial]:
        """The reference pictures and the trials."""
        return [
            *(Trial(text, REFERENCE, text, FIRST_REFERENCE + number) for number, text in enumerate(self.references)),
            *self.trials,
        ]

    def check(self) -> None:
        """Refuse what does not fit together.

        Raises:
            UsageError: for settings that the pipeline refuses, or too few references.
        """
        check_call(self.setup)
        check_references(self.references, repeated=not self.setup.family.conditional, fpr=None)
        # a warning says which prompts are cut off
        kept_prompts(self.setup, [trial.prompt for trial in self._everything], "truncate")

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What a bench must not change when it goes on, as JSON values."""
        return {
            **super().settings,
            "threshold": self.threshold,
            "localizers": {made.name: made.describe() for made in self.localizers},
            "checkpoint": "" if self.setup.checkpoint is None else weights_digest(self.setup.checkpoint),
        }

    @property
    def _images(self) -> Stage:
        """The stage that generates and maps everything."""
        return Stage("images", PARTS, self.folder, range(len(self._everything)), self.batch_size)

    def stages(self) -> Iterator[list[Stage]]:
        """Yield the only stage, in which images are generated and mapped."""
        yield [self._images]

    def part(self, stage: Stage, number: int, report: Report) -> None:
        """Generate a batch, and write its maps, masks and pictures."""
        part = [self._everything[row] for row in stage.part(number)]
        (batch,) = generate(
            self.setup,
            [trial.prompt for trial in part],
            [trial.seed for trial in part],
            batch_size=len(part),
            keep=places(self.localizers),
            progress=report,
        )
        tensors: dict[str, Tensor] = {}
        seconds = {}
        for made in self.localizers:
            began = time.perf_counter()
            tensors[f"map/{made.name}"] = maps_of(self.setup, [made], batch)[made.name].values.float()
            seconds[made.name] = (time.perf_counter() - began) / len(part)
        rows, masks = [], []
        for trial, image in zip(part, batch.images, strict=True):
            distance, mask = None, np.zeros(image.shape[1:], dtype=bool)
            if trial.group == MEMORIZED:
                distance, mask = self.truth(trial, image)
            reproduced = None if distance is None else distance <= self.threshold
            rows.append({**asdict(trial), "distance": distance, "reproduced": reproduced, "seconds": seconds})
            masks.append(torch.from_numpy(mask if reproduced is not False else np.zeros_like(mask)))
        tensors["mask"] = torch.stack(masks)
        tensors["picture"] = (batch.images * 255).round().to(torch.uint8)
        save_checked(stage.files[number], KIND, 1, {"rows": rows}, tensors)

    def result(self) -> MapPacket:
        """All maps, and their figures.

        Raises:
            UsageError: for a damaged file of a part.
        """
        parts = [load_checked(path, KIND, 1) for path in self._images.files]
        rows = [row for about, _ in parts for row in about["rows"]]
        tensors = {name: joined_maps([part[name] for _, part in parts]) for name in parts[0][1]}
        methods = {
            made.name: {
                "describe": made.describe(),
                "cost": made.cost(self.setup),
                "seconds": float(np.median([row["seconds"][made.name] for row in rows])),
            }
            for made in self.localizers
        }
        packet = MapPacket.of(self.made_with, methods, rows, tensors)
        packet.save(self.folder / MAPS)
        return packet
