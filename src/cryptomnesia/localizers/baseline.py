"""What a map is compared with: a model that knows the picture less well.

The two baselines of arXiv:2605.26756 are the same model without the caption (Δ_∅) and a less-trained checkpoint of it
with the caption (Δ_θ̃). The first is the unconditional branch of every guided run and costs nothing. For a run without
guidance the model can be evaluated once more, with an empty caption.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from cryptomnesia.errors import UsageError
from cryptomnesia.pipelines.denoiser import Denoiser, Prediction
from cryptomnesia.pipelines.families import family_of
from cryptomnesia.pipelines.fingerprint import weights_digests
from cryptomnesia.pipelines.inputs import Inputs, carried, input_rows
from cryptomnesia.pipelines.schedule import Level
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.settings import Sampling
from cryptomnesia.tracing.reading import conditioning
from cryptomnesia.tracing.trajectory import Step

Against = Literal["none", "unconditional", "empty", "checkpoint"]
"""What a map is compared with."""


@dataclass(frozen=True)
class Baseline:
    """A model and its conditioning for every image of a generation.

    Attributes:
        denoiser: the model.
        inputs: its conditioning, batch first.
        seen: its prediction at an evaluation, if it is known.
    """

    denoiser: Denoiser
    inputs: Inputs
    seen: Prediction | None = None

    @torch.no_grad()
    def at(self, step: Step) -> "Baseline":
        """The baseline with its prediction at a step, so that several maps of that step evaluate it once."""
        inputs = carried(self.inputs, step.cond_inputs)
        return replace(self, inputs=inputs, seen=self.denoiser(step.cond.x, step.level, inputs))

    @torch.no_grad()
    def prediction(self, x: Tensor, level: Level) -> Prediction:
        """The prediction at x (B, …); the network is evaluated unless the prediction is known."""
        if self.seen is not None and (self.seen.x is x or torch.equal(self.seen.x, x)):
            return self.seen
        return self.denoiser(x, level, self.inputs)

    def epsilon(self, x: Tensor, level: Level) -> Tensor:
        """The noise estimate at x (B, …), (B, …); the network is evaluated unless the prediction is known."""
        return self.prediction(x, level).epsilon

    def rows(self, rows: Sequence[int]) -> "Baseline":
        """The baseline for some of the images."""
        rows = list(rows)
        return Baseline(
            self.denoiser, input_rows(self.inputs, rows), None if self.seen is None else self.seen.rows(rows)
        )


def baseline_for(setup: Setup, against: Against, prompts: Sequence[str]) -> Baseline | None:
    """The baseline for the images of `prompts`; None if it is the unconditional branch of the run, or if there is none.

    The empty caption is encoded like any other caption, while SDXL's unconditional branch gets zeros instead. A
    checkpoint reads the captions with its own text encoder.
    """
    if against == "empty":
        return _reading(setup.pipe, [""] * len(prompts), setup.sampling)
    if against == "checkpoint":
        return _reading(setup.checkpoint, prompts, setup.sampling)
    return None


def _reading(pipe: Any, prompts: Sequence[str], sampling: Sampling) -> Baseline:
    """The network of a pipeline with the conditioning that the pipeline computes from the captions."""
    return Baseline(family_of(pipe).denoiser(), conditioning(pipe, prompts, sampling))


def check_checkpoint(pipe: Any, other: Any, *, decoded: bool = True) -> None:
    """Refuse a checkpoint whose latents or noise schedule are not those of the model.

    Args:
        pipe: the model.
        other: the checkpoint.
        decoded: whether the autoencoders are compared, too. Fine-tunes may have another decoder.

    Raises:
        UsageError: naming everything that differs.
    """
    first: Any = family_of(pipe)
    second: Any = family_of(other)
    differences = {
        "family": (type(pipe).__name__, type(other).__name__),
        "prediction type": (first.kind, second.kind),
        "dtype": (first.module.dtype, second.module.dtype),
        "latent channels": (first.module.config.get("in_channels"), second.module.config.get("in_channels")),
        "latent size": (first.module.config.get("sample_size"), second.module.config.get("sample_size")),
        "noise schedule": (_schedule(pipe), _schedule(other)),
    }
    if decoded:
        differences["autoencoder"] = (_autoencoder(pipe), _autoencoder(other))
    unlike = [f"{name} is {b}, the model's {a}" for name, (a, b) in differences.items() if a != b]
    if unlike:
        raise UsageError(
            f"the baseline does not fit the model: {'; '.join(unlike)}; give a checkpoint of the same model"
        )


def _schedule(pipe: Any) -> str:
    """The noise schedule in words: α at three timesteps."""
    schedule = family_of(pipe).schedule
    return ", ".join(f"{schedule(t)[0].item():.6f}" for t in (0, 500, 999))


def _autoencoder(pipe: Any) -> str:
    """The beginning of the digest of the autoencoder's weights."""
    return weights_digests(pipe).get("vae", "none")[:12]
