"""Record the reference runs of a calibration batch by batch, and make the calibration from what was recorded."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cryptomnesia.calibration.captions import Captions
from cryptomnesia.calibration.stored import Calibration, made_in_words, norm_in_words
from cryptomnesia.detectors import Detector
from cryptomnesia.errors import UsageError
from cryptomnesia.files import prompts_digest
from cryptomnesia.localizers import Localizer
from cryptomnesia.localizers.mapping import mapped
from cryptomnesia.pipelines.fingerprint import weights_digest
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.tracing.columns import columns, trajectory_of
from cryptomnesia.tracing.trajectory import Norm, Signal, Trajectory

MAP = "map:"
"""What the names of columns begin with that hold a map."""


@dataclass(frozen=True)
class Recording:
    """What is recorded of a set-up's reference runs.

    Attributes:
        setup: of the runs.
        captions: one per run.
        detectors: whose norms and signals are recorded.
        localizers: whose maps are made.
        seed: of the first run; every further run has the next one.
        batch_size: runs per call of the pipeline.
    """

    setup: Setup
    captions: Sequence[str]
    detectors: Sequence[Detector]
    localizers: Sequence[Localizer]
    seed: int
    batch_size: int

    @property
    def batches(self) -> int:
        """The number of batches."""
        return -(-len(self.captions) // self.batch_size)

    def batch(self, number: int, report: Callable[[float], None] | None = None) -> list[dict[str, Any]]:
        """The rows of a batch, counted from 0; `report` is called with the number of its runs that are done."""
        places = range(len(self.captions))[number * self.batch_size : (number + 1) * self.batch_size]
        norms, signals = recorded_for(self.detectors)
        ((batch, maps),) = mapped(
            self.setup,
            [self.captions[place] for place in places],
            [self.seed + place for place in places],
            self.localizers,
            batch_size=len(places),
            norms=norms,
            signals=signals,
            decode=False,
            progress=report,
        )
        runs = batch.trajectory.bare()
        return [
            {
                "prompt": self.captions[place],
                "seed": self.seed + place,
                **columns(runs.rows([row])),
                **{f"{MAP}{name}": heat.values[row].tolist() for name, heat in maps.items()},
            }
            for row, place in enumerate(places)
        ]

    def calibration(self, rows: Sequence[dict[str, Any]]) -> Calibration:
        """The calibration from the rows of all batches, in their order.

        Raises:
            UsageError: for runs that are missing or ended early, or output that is not finite.
        """
        wanted = [(caption, self.seed + place) for place, caption in enumerate(self.captions)]
        if [(row["prompt"], row["seed"]) for row in rows] != wanted:
            raise UsageError(
                f"got {len(rows)} recorded runs that are not those of the {len(wanted)} references; record them again"
            )
        norms, signals = recorded_for(self.detectors)
        return fitted(
            self.setup,
            self.captions,
            trajectory_of(rows),
            {made.name: torch.tensor([row[f"{MAP}{made.name}"] for row in rows]) for made in self.localizers},
            norms=norms,
            signals=signals,
            localizers=self.localizers,
        )


def recorded_for(detectors: Sequence[Detector]) -> tuple[list[Norm], list[Signal]]:
    """The norms and signals that `watch` has to record for detectors, without repetition.

    Raises:
        UsageError: if two detectors need different norms or signals of the same name.
    """
    norms: dict[str, Norm] = {}
    signals: dict[str, Signal] = {}
    for judge in detectors:
        for norm in judge.norms:
            _check_alike(norm.name, norm_in_words(norms.setdefault(norm.name, norm)), norm_in_words(norm))
        for signal in judge.signals:
            _check_alike(signal.name, signals.setdefault(signal.name, signal).describe(), signal.describe())
    return list(norms.values()), list(signals.values())


def _check_alike(name: str, first: str, second: str) -> None:
    """Refuse two norms or signals that have one name and are described differently."""
    if first != second:
        raise UsageError(f"got two kinds of {name}: {first} and {second}; calibrate with one detector at a time")


def fitted(
    setup: Setup,
    prompts: Sequence[str],
    runs: Trajectory,
    maps: dict[str, Tensor],
    *,
    norms: Sequence[Norm] = (),
    signals: Sequence[Signal] = (),
    localizers: Sequence[Localizer] = (),
) -> Calibration:
    """The calibration from the record of one image of every reference prompt.

    Args:
        setup: the set-up of the runs.
        prompts: one per run.
        runs: the reference runs.
        maps: name of a localizer → its maps of the reference runs, (n, h, w).
        norms: the further norms that were recorded.
        signals: the signals that were computed.
        localizers: the localizers that made `maps`.

    Raises:
        UsageError: for runs that ended early, or output that is not finite.
    """
    if not runs.complete:
        raise UsageError("the reference runs ended before their last step; calibrate with options that let them end")
    for name in ("delta", "z", "x0"):
        if broken := int((~runs.norms[name].isfinite()).any(dim=1).sum()):
            raise UsageError(
                f"the model's output holds NaN or infinity on {broken} of {len(runs)} reference prompts; check its "
                "weights and dtype"
            )
    for name, heat in maps.items():
        if broken := int((~heat.isfinite()).flatten(1).any(dim=1).sum()):
            raise UsageError(
                f"{broken} of {len(heat)} reference maps of {name} are not finite; check the model's dtype"
            )
    checkpoint = "" if setup.checkpoint is None else weights_digest(setup.checkpoint)
    made_by = {norm.name: norm_in_words(norm) for norm in norms}
    made_by |= {signal.name: signal.describe() for signal in signals}
    made_by |= {f"map {mapper.name}": made_in_words(mapper, checkpoint) for mapper in localizers}
    captions = Captions.read_by(setup.family, prompts)
    return Calibration(setup.fingerprint, runs, maps, made_by, prompts_digest(prompts), captions)
