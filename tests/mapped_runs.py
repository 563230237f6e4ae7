"""Runs that localizers can map: of a closed-form Gaussian, and of miniatures."""

from typing import Any

import torch
from scipy.stats import ortho_group

from cryptomnesia.localizers import DiagonalEstimator, Watched
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.testing.oracles import Gaussian
from cryptomnesia.tracing.generation import generate

SIZE = 16
PLANTED = torch.zeros(4, 4, dtype=torch.bool)
"""The half of the picture that the caption determines."""
PLANTED[:, :2] = True

CHEAP = DiagonalEstimator(probes=16, group=16)
PROMPTS = ["a red circle", "a small striped blue star"]


def gaussian(kind: Any = "epsilon", mixed: bool = False) -> Gaussian:
    """The caption (condition 1) determines the planted half; without it (condition 0) nothing is determined."""
    basis = torch.eye(SIZE, dtype=torch.float64).repeat(2, 1, 1)
    if mixed:
        basis = torch.stack([torch.from_numpy(ortho_group.rvs(SIZE, random_state=seed)) for seed in (0, 1)])
    fixed = torch.where(PLANTED.flatten(), 1e-4, 1.0).double()
    return Gaussian(
        mean=torch.stack([torch.zeros(SIZE), torch.randn(SIZE, generator=torch.Generator().manual_seed(0))]).double(),
        basis=basis,
        variances=torch.stack([torch.ones(SIZE, dtype=torch.float64), fixed]),
        kind=kind,
    )


def view(pipe: Any) -> Any:
    """The oracle as a denoiser of the conditioning that was recorded."""
    return lambda x, t, inputs: pipe.unet.oracle(x, t, {"which": inputs["encoder_hidden_states"][:, 0, 0].long()})


def watched(setup: Setup, baseline: Any = None, prompts: list[str] = PROMPTS, seeds: Any = (0, 1)) -> Watched:
    """A generation with the tensors of its first two evaluations and of its last one."""
    (batch,) = generate(setup, prompts, list(seeds), keep=(0, 1, -1))
    return Watched(batch.trajectory, setup.family.denoiser(), baseline, prompts, list(seeds), setup.pipe)
