"""Methods as another package would write them, from the public API alone."""

from dataclasses import dataclass

import torch

from cryptomnesia import Detector, Localizer, Map, Mitigation
from cryptomnesia.mitigations.base import Remade, withheld


@dataclass(frozen=True)
class Contrast:
    """A norm of its own: the standard deviation of the latents after every evaluation."""

    name = "acme.contrast"

    def __call__(self, step, latents, previous):
        return latents.flatten(1).std(dim=1)


@dataclass(frozen=True)
class Patch:
    """A signal of its own, of any shape: a corner of the first evaluation's estimate."""

    name = "acme.patch"
    evaluations = (0,)

    def describe(self):
        return "a 2×3 corner"

    def __call__(self, trajectory, denoiser):
        return trajectory.step(0).cond.x0[:, 0, :2, :3]


@dataclass(frozen=True)
class Acme(Detector):
    """Reads a norm and a signal of its own, and the timesteps."""

    factor: float = 1.0

    name = "acme"
    reads = frozenset({"acme.contrast", "acme.patch"})
    norms = (Contrast(),)
    signals = (Patch(),)

    def running(self, runs, references):
        times = torch.tensor(runs.timesteps[: runs.evaluations])
        corner = runs.signals["acme.patch"].flatten(1).abs().mean(dim=1, keepdim=True)
        return self.factor * (runs.norms["acme.contrast"] + corner + times / 1000)


@dataclass(frozen=True)
class AcmeMap(Localizer):
    """The size of the last estimate, which needs no baseline."""

    name = "acme-map"

    def map(self, watched):
        return Map(watched.trajectory.step(-1).cond.x0.abs().sum(dim=1).float())


@dataclass(frozen=True)
class AcmeRemedy(Mitigation):
    """Shows nothing."""

    name = "acme-remedy"

    def remake(self, flagged, studio):
        return [Remade(withheld(image.verdict, "acme said so")) for image in flagged]


@dataclass(frozen=True)
class Loudest(Detector):
    """Reads only what every run stores."""

    name = "acme-loudest"
    reads = frozenset({"z"})

    def running(self, runs, references):
        return runs.norms["z"].cummax(dim=1).values


@dataclass(frozen=True)
class Fails(Detector):
    """Has a mistake that shows only when it is used."""

    name = "acme-fails"
    reads = frozenset({"z"})

    def running(self, runs, references):
        return runs.norms["no such norm"]
