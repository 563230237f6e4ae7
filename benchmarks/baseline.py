"""Which branches hold the generated pictures? docs/results/baseline.json.

    python benchmarks/baseline.py > docs/results/baseline.json

A map that is compared with a baseline needs one that knows the picture less well than the caption does. The critical
scale σ_c (`critical-scale`) tells up to which noise level a branch holds a picture. It is measured with the caption,
without it (the difference is the detector `caption-gap`), and with the caption in a checkpoint that was trained less,
for about 100 pictures of planted captions, 100 of ordinary ones, and hard negatives:

- `least`: log σ of the last evaluation, where there is hardly any noise left, so that being held there says nothing.
- `median`: of log σ_c, by branch.
- `held`: the share of pictures that the branch holds above that level.
- `less`: the share of pictures that the baseline holds less firmly than the caption does, so that it may be used.
- `more`: the share of pictures that the baseline holds more firmly than the caption does.
- `pictures`: their number. Of planted captions only pictures that reproduce are counted.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from common import Start, print_json, progress
from numpy.typing import NDArray
from torch import Tensor

from cryptomnesia import load_pipeline
from cryptomnesia.bench.trials import MEMORIZED, of_ground
from cryptomnesia.cli.benches import distance
from cryptomnesia.detectors.critical_scale import CriticalScale
from cryptomnesia.localizers.baseline import Baseline, baseline_for, check_checkpoint
from cryptomnesia.pipelines.denoiser import Denoiser
from cryptomnesia.pipelines.inputs import carried
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.proving_ground.ground import ground_of
from cryptomnesia.proving_ground.manifest import Manifest
from cryptomnesia.tracing.generation import generate
from cryptomnesia.tracing.trajectory import Place, Trajectory

GROUNDS = ("scenes", "drawings")
PICTURES = 100
BATCH = 16
BRANCHES = ("caption", "unconditional", "checkpoint")


def main() -> None:
    """Measure and print JSON."""
    with progress() as start:
        print_json({name: measure(name, start) for name in GROUNDS})


@dataclass(frozen=True)
class Scales:
    """The log σ_c of every picture by branch, and log σ of the last evaluation, (B, 4), as a signal of a run.

    Attributes:
        scale: how σ_c is measured.
        checkpoint: the checkpoint with the captions of the run.
    """

    scale: CriticalScale
    checkpoint: Baseline
    name = "scales"

    @property
    def evaluations(self) -> tuple[Place, ...]:
        """Those of the noise levels."""
        return self.scale.places

    def describe(self) -> str:
        """The settings."""
        return self.scale.describe()

    @torch.no_grad()
    def __call__(self, trajectory: Trajectory, denoiser: Denoiser) -> Tensor:
        """The values of the three branches, and the level."""
        last = trajectory.step(-1)
        assert last.uncond_inputs is not None
        branches = (
            (denoiser, last.cond_inputs),
            (denoiser, last.uncond_inputs),
            (self.checkpoint.denoiser, carried(self.checkpoint.inputs, last.cond_inputs)),
        )
        found = [self.scale.log_scale(trajectory, branch, inputs) for branch, inputs in branches]
        return torch.stack([*found, torch.full_like(found[0], math.log(last.level.sigma / last.level.alpha))], dim=1)


def measure(name: str, start: Start) -> dict[str, Any]:
    """The figures of a ground, by the group of the pictures."""
    ground = ground_of(name)
    manifest = Manifest.load(ground.bundle)
    pipe, early = (load_pipeline(str(ground.bundle / folder), device="cpu") for folder in ("pipeline", "early"))
    setup = Setup.of(pipe, ground.call(manifest.steps, manifest.guidance), checkpoint=early)
    check_checkpoint(pipe, early)
    trials = of_ground(manifest, PICTURES, PICTURES)
    tell = start(name, len(trials))
    scales, copied = [], []
    for first in range(0, len(trials), BATCH):
        chunk = trials[first : first + BATCH]
        prompts = [trial.prompt for trial in chunk]
        checkpoint = baseline_for(setup, "checkpoint", prompts)
        assert checkpoint is not None
        signal = Scales(CriticalScale(), checkpoint)
        seeds = [trial.seed for trial in chunk]
        (batch,) = generate(setup, prompts, seeds, batch_size=BATCH, signals=(signal,))
        scales.append(batch.trajectory.signals[signal.name])
        for trial, image in zip(chunk, batch.images, strict=True):
            copied.append(trial.group == MEMORIZED and distance(manifest, trial, image) <= ground.threshold)
        tell(first + len(chunk))
    found = torch.cat(scales).double().numpy()
    groups = np.array([trial.group for trial in trials])
    counted = np.array(copied) | (groups != MEMORIZED)
    return {group: of_group(found[(groups == group) & counted]) for group in dict.fromkeys(groups.tolist())}


def of_group(found: NDArray[np.float64]) -> dict[str, Any]:
    """The figures of n pictures from their log σ_c by branch and the level of the last evaluation, (n, 4)."""
    scales, least = found[:, :3], found[0, 3]
    caption, baselines = scales[:, :1], scales[:, 1:]
    return {
        "least": float(least),
        "median": by_branch(np.median(scales, axis=0)),
        "held": by_branch((scales > least + 1e-6).mean(axis=0)),
        "less": by_branch((baselines < caption).mean(axis=0), BRANCHES[1:]),
        "more": by_branch((baselines > caption).mean(axis=0), BRANCHES[1:]),
        "pictures": len(scales),
    }


def by_branch(values: NDArray[np.float64], branches: tuple[str, ...] = BRANCHES) -> dict[str, float]:
    """Numbers with the names of the branches."""
    return {branch: float(value) for branch, value in zip(branches, values, strict=True)}


if __name__ == "__main__":
    main()
