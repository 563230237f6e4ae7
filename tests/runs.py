"""Runs and calibrations from numbers alone."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from cryptomnesia import Calibration
from cryptomnesia.tracing.trajectory import NORMS, Trajectory

LONG = [
    f"the small {shape} and the wide {other} in the dotted ground of the arch"
    for shape in ("heart", "star", "disc", "bar", "cross")
    for other in ("half", "square", "triangle", "ring", "bar")
]
"""Prompts that are unlike those of the miniatures' references, and that they can read."""


def trajectory(
    values: Sequence[Sequence[float]] | Tensor,
    *,
    planned: int | None = None,
    signals: Mapping[str, Tensor] | None = None,
    **norms: Sequence[Sequence[float]] | Tensor,
) -> Trajectory:
    """Runs whose norms are all `values` (B, N), but for those that are given by name."""
    usual = torch.as_tensor(values, dtype=torch.float32)
    given = {name: torch.as_tensor(norm, dtype=torch.float32) for name, norm in norms.items()}
    steps = usual.shape[1] if planned is None else planned
    return Trajectory(
        tuple(float(step) for step in range(steps)),
        dict.fromkeys(NORMS, usual) | given,
        {},
        torch.empty(len(usual), 0),
        complete=steps == usual.shape[1],
        signals=signals or {},
    )


def calibration_of_runs(runs: Trajectory, **more: Mapping[str, object]) -> Calibration:
    """A calibration of these reference runs, of no particular set-up."""
    return Calibration(**{"fingerprint": {}, "runs": runs, "maps": {}, "made_by": {}, "prompts_sha256": "", **more})
