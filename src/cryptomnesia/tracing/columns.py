"""What was recorded of an image as columns of a row, and back.

A norm is the column `norm:NAME`, and a signal `signal:NAME`. So the norms and signals of any detector are stored,
whoever wrote it.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cryptomnesia.errors import UsageError
from cryptomnesia.tracing.trajectory import Trajectory, joined_maps

NORM, SIGNAL = "norm:", "signal:"
"""What the names of columns begin with that hold a norm or a signal."""


def columns(trajectory: Trajectory) -> dict[str, Any]:
    """Norms and signals of one image, with the timesteps of its run, as columns of a row."""
    return {
        "timesteps": list(trajectory.timesteps),
        **{f"{NORM}{name}": values[0].tolist() for name, values in trajectory.norms.items()},
        **{f"{SIGNAL}{name}": values[0].tolist() for name, values in trajectory.signals.items()},
    }


def trajectory_of(rows: Sequence[dict[str, Any]]) -> Trajectory:
    """The trajectory of the images of rows, at least one, without tensors.

    Raises:
        UsageError: for columns of norms or signals that are not those of one run.
    """
    try:
        return _trajectory(rows)
    # a column that is missing, of another type or of another length
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UsageError(f"the norms and signals of the run are damaged ({reason}); audit again") from None


def _trajectory(rows: Sequence[dict[str, Any]]) -> Trajectory:
    """The trajectory of rows."""
    timesteps = tuple(rows[0]["timesteps"])
    if any(row["timesteps"] != rows[0]["timesteps"] for row in rows):
        raise ValueError("the timesteps of the images differ")
    norms = {key.removeprefix(NORM): _norms([row[key] for row in rows]) for key in rows[0] if key.startswith(NORM)}
    signals = {
        key.removeprefix(SIGNAL): joined_maps([torch.tensor([row[key]]) for row in rows])
        for key in rows[0]
        if key.startswith(SIGNAL)
    }
    complete = all(len(row[f"{NORM}z"]) == len(timesteps) for row in rows)
    return Trajectory(timesteps, norms, {}, torch.empty(len(rows), 0), complete, signals)


def _norms(values: Sequence[Sequence[float]]) -> Tensor:
    """A norm of several images, (n, N); NaN behind the end of a run that was cut short."""
    longest = max(map(len, values))
    return torch.tensor([[*row, *[torch.nan] * (longest - len(row))] for row in values])
