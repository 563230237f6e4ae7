"""Scores that are measured once during a run: from tensors of some evaluations, and from the network.

The network is evaluated beside the run, between two of its steps; the picture stays the same.
"""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from cryptomnesia.detectors.base import Detector, check_evaluations
from cryptomnesia.localizers.base import check_place
from cryptomnesia.pipelines.denoiser import Denoiser
from cryptomnesia.pipelines.setup import Setup, overridable
from cryptomnesia.tracing.trajectory import Place, Signal, Trajectory, evaluation


class Measured(Detector):
    """A detector whose score is one number per image, measured as soon as the evaluations in `places` are over."""

    @property
    @abstractmethod
    def places(self) -> tuple[Place, ...]:
        """The evaluations whose tensors are measured."""

    @abstractmethod
    def measure(self, run: Trajectory, denoiser: Denoiser) -> Tensor:
        """The score of every image, (B,), or a map whose spatial mean is the score, (B, h, w).

        Args:
            run: the run so far, with the tensors of `places`.
            denoiser: the network of the run.
        """

    @overridable
    def reads(self) -> frozenset[str]:
        """The name of the measurement."""
        return frozenset({self.name})

    @overridable
    def signals(self) -> tuple[Signal, ...]:
        """The measurement as a signal."""
        return (Measurement(self),)

    def check(self, setup: Setup) -> None:
        """Refuse a set-up whose runs lack one of the evaluations.

        Raises:
            UsageError: with the evaluations that a run has.
        """
        for place in self.places:
            check_place(setup, place)

    def earliest(self, evaluations: int) -> int:
        """The number of evaluations after which there is a measurement."""
        return 1 + max(evaluation(place, evaluations) for place in self.places)

    def settled(self, evaluations: int) -> int:
        """The number of evaluations after which there is a measurement; it stays as it is."""
        return self.earliest(evaluations)

    def running(self, runs: Trajectory, references: Trajectory) -> Tensor:
        """0 before the measurement, its value from then on, (B, N); NaN where nothing could be measured."""
        check_evaluations(runs, references)
        scores = torch.zeros_like(runs.norms["z"])
        measured = runs.signals.get(self.name)
        values = torch.tensor([torch.nan]) if measured is None else measured.double().reshape(len(measured), -1)
        scores[:, self.earliest(len(runs.timesteps)) - 1 :] = values.mean(dim=-1).float().unsqueeze(-1)
        return scores


@dataclass(frozen=True)
class Measurement:
    """What a detector measures, as a signal of a run, (B,) float32."""

    detector: Measured

    @property
    def name(self) -> str:
        """The name of the detector."""
        return self.detector.name

    @property
    def evaluations(self) -> tuple[Place, ...]:
        """The evaluations whose tensors the detector measures."""
        return self.detector.places

    def describe(self) -> str:
        """Everything that changes the values, in words."""
        return self.detector.describe()

    def __call__(self, trajectory: Trajectory, denoiser: Denoiser) -> Tensor:
        """The score of every image, (B,)."""
        return self.detector.measure(trajectory, denoiser).float()
