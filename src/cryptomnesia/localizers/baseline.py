"""What a map is compared with: a model that knows the picture less well.

The paper's two baselines are the same model without the caption (Δ_∅) and a less-trained checkpoint of it with the
caption (Δ_θ̃). The first is part of every guided generation and costs nothing. For a run without guidance the model can
be evaluated once more with an empty caption.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from cryptomnesia.errors import UsageError
from cryptomnesia.pipelines.call import silent
from cryptomnesia.pipelines.denoiser import Denoiser, Inputs, Prediction
from cryptomnesia.pipelines.families import family_of
from cryptomnesia.pipelines.fingerprint import weights_digests
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.settings import Sampling
from cryptomnesia.tracing.trajectory import Step
from cryptomnesia.tracing.watching import watch

Against = Literal["none", "unconditional", "empty", "checkpoint"]
"""What a map is compared with."""


@dataclass(frozen=True)
class Baseline:
    """A model and its conditioning for every image of a generation.

    Attributes:
        denoiser: the model.
        inputs: its conditioning, batch first.
        seen: its predictions at the step in question, where they are known.
    """

    denoiser: Denoiser
    inputs: Inputs
    seen: Prediction | None = None

    @torch.no_grad()
    def at(self, step: Step) -> "Baseline":
        """The baseline evaluated at a step, once for all maps of it."""
        return replace(self, seen=self.denoiser(step.cond.x, step.t, self.inputs))

    @torch.no_grad()
    def prediction(self, x: Tensor, t: float) -> Prediction:
        """Its prediction at x (B, …); an evaluation only where there was none."""
        if self.seen is not None and (self.seen.x is x or torch.equal(self.seen.x, x)):
            return self.seen
        return self.denoiser(x, t, self.inputs)

    def epsilon(self, x: Tensor, t: float) -> Tensor:
        """Its noise estimate at x (B, …), (B, …), likewise."""
        return self.prediction(x, t).epsilon


def baseline_for(setup: Setup, against: Against, prompts: Sequence[str]) -> Baseline | None:
    """The baseline for the images of `prompts`, None for the run's own unconditional branch or none at all.

    An empty caption is encoded like any other; SDXL's own unconditional branch is given zeros in its place. A checkpoint
    reads the captions with its own text encoder.
    """
    if against == "empty":
        return _reading(setup.pipe, [""] * len(prompts), setup.sampling)
    if against == "checkpoint":
        return _reading(setup.checkpoint, prompts, setup.sampling)
    return None


def _reading(pipe: Any, prompts: Sequence[str], sampling: Sampling) -> Baseline:
    """The network of a pipeline, with what the pipeline makes of the captions."""
    return Baseline(family_of(pipe).denoiser(), conditioning(pipe, prompts, sampling))


def check_checkpoint(pipe: Any, other: Any) -> None:
    """Refuse a checkpoint whose latents or noise schedule are not those of the model.

    Raises:
        UsageError: naming everything that differs.
    """
    first: Any = family_of(pipe)
    second: Any = family_of(other)
    differences = {
        "family": (type(pipe).__name__, type(other).__name__),
        "prediction type": (first.kind, second.kind),
        "dtype": (first.module.dtype, second.module.dtype),
        "latent channels": (first.module.config.in_channels, second.module.config.in_channels),
        "latent size": (first.module.config.get("sample_size"), second.module.config.get("sample_size")),
        "noise schedule": (_schedule(pipe), _schedule(other)),
        "autoencoder": (_autoencoder(pipe), _autoencoder(other)),
    }
    unlike = [f"{name} is {b}, the model's {a}" for name, (a, b) in differences.items() if a != b]
    if unlike:
        raise UsageError(
            f"the baseline does not fit the model: {'; '.join(unlike)}; give a checkpoint of the same model"
        )


def conditioning(pipe: Any, prompts: Sequence[str], sampling: Sampling) -> Inputs:
    """What the pipeline gives its network for the captions, taken from a call that ends after one evaluation."""

    def stop(_: int) -> None:
        pipe._interrupt = True

    try:
        with silent(pipe), watch(pipe, keep=(0,), after_step=stop) as seen:
            pipe(
                **family_of(pipe).arguments(prompts, replace(sampling, steps=2)),
                generator=[torch.Generator().manual_seed(0) for _ in prompts],
                output_type="latent",
            )
    finally:
        pipe._interrupt = False
    return seen.trajectory.step(0).cond_inputs


def together(first: Inputs, second: Inputs) -> dict[str, Any]:
    """Two conditionings of the same network in one batch, the first's images first."""
    return {
        name: together(value, second[name])
        if isinstance(value, Mapping)
        else torch.cat([value, second[name]])
        if isinstance(value, Tensor)
        else value
        for name, value in first.items()
    }


def _schedule(pipe: Any) -> str:
    """The noise schedule at three timesteps, in words."""
    schedule = family_of(pipe).schedule
    return ", ".join(f"{schedule(t)[0].item():.6f}" for t in (0, 500, 999))


def _autoencoder(pipe: Any) -> str:
    return weights_digests(pipe).get("vae", "none")[:12]
