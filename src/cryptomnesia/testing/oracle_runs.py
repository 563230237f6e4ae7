"""Runs of the stock pipeline around the closed forms, on which the right answer is known."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.settings import Sampling
from cryptomnesia.testing.miniatures import KeywordEncoder, call_oracle, oracle_pipeline
from cryptomnesia.testing.oracles import FiniteSet, Gaussian
from cryptomnesia.tracing.trajectory import Norm, Signal, Trajectory
from cryptomnesia.tracing.watching import watch

SIDE = 4
"""Height and width of the oracles' latents, which have one channel."""

SAMPLING = Sampling(steps=20, guidance=1.01)
"""The settings of all runs here. Guidance is weak: the closed forms need none to do as the caption says."""

CAPTION = "a ring"
"""The caption under which `half_memorized` remembers; it remembers nothing under captions without a ring."""


@dataclass(frozen=True)
class OracleRuns:
    """Runs of three models, each with a caption and an unconditional branch.

    Attributes:
        ordinary: of a Gaussian, which remembers nothing.
        memorized: of a finite set, which remembers one picture under its caption and one of 64 without a caption.
        narrow: of a Gaussian that is nearly a single picture under its caption and remembers nothing without one.
    """

    ordinary: Trajectory
    memorized: Trajectory
    narrow: Trajectory


def oracles() -> tuple[Gaussian, FiniteSet, Gaussian]:
    """The models of `OracleRuns`, in its order; condition 1 of each is the caption, condition 0 none."""
    generator = torch.Generator().manual_seed(0)
    size = SIDE * SIDE
    wide = torch.ones(size, dtype=torch.float64)
    none = torch.zeros(size)
    basis = torch.eye(size, dtype=torch.float64).repeat(2, 1, 1)
    gaussian = Gaussian(
        mean=torch.stack([none, 0.3 * torch.randn(size, generator=generator)]).double(),
        basis=basis,
        variances=torch.stack([wide, 0.8 * wide]),
    )
    picture = 1.5 * torch.randn(1, 1, SIDE, SIDE, generator=generator)
    memorizer = FiniteSet((torch.randn(64, 1, SIDE, SIDE, generator=generator), picture))
    narrow = Gaussian(
        mean=torch.stack([none, picture.flatten()]).double(),
        basis=basis,
        variances=torch.stack([wide, 1e-4 * wide]),
    )
    return gaussian, memorizer, narrow


def oracle_runs(norms: Sequence[Norm] = (), signals: Sequence[Signal] = (), *, count: int = 24) -> OracleRuns:
    """`count` runs of each model, with the norms and signals that a detector asks for."""
    runs = []
    for oracle in oracles():
        pipe = oracle_pipeline(oracle, side=SIDE)
        with watch(pipe, norms=norms, signals=signals) as seen:
            call_oracle(pipe, which=1, seeds=range(count), steps=SAMPLING.steps, guidance=SAMPLING.guidance)
        runs.append(seen.trajectory)
    return OracleRuns(*runs)


def fixed_half() -> Tensor:
    """Where `half_memorized` remembers, (h, w) bool: the left half."""
    fixed = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    fixed[:, : SIDE // 2] = True
    return fixed


def half_memorized() -> Setup:
    """A set-up whose model remembers the left half of a picture under `CAPTION`, and nothing without a caption.

    Its checkpoint, less trained, remembers nothing under the caption either.
    """

    def pipeline(variance: float) -> Any:
        size = SIDE * SIDE
        wide = torch.ones(size, dtype=torch.float64)
        picture = torch.randn(size, generator=torch.Generator().manual_seed(0)).double()
        oracle = Gaussian(
            mean=torch.stack([torch.zeros_like(picture), picture]),
            basis=torch.eye(size, dtype=torch.float64).repeat(2, 1, 1),
            variances=torch.stack([wide, torch.where(fixed_half().flatten(), variance, wide)]),
        )
        pipe = oracle_pipeline(oracle, side=SIDE)
        pipe.register_modules(text_encoder=KeywordEncoder("ring"))
        return pipe

    return Setup(pipeline(1e-4), SAMPLING, checkpoint=pipeline(1.0))
