"""What a map is compared with: a model that knows the picture less well.

The paper's two baselines are the same model without the caption (Δ_∅) and a less-trained checkpoint of it
with the caption (Δ_θ̃). The first is part of every guided generation and costs nothing. A model that is not
guided can be asked once more with an empty caption.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cryptomnesia.errors import UsageError
from cryptomnesia.pipelines.denoiser import Denoiser, Inputs, Prediction, input_rows
from cryptomnesia.pipelines.families import adapter_for
from cryptomnesia.pipelines.fingerprint import weights_digests
from cryptomnesia.settings import Sampling
from cryptomnesia.tracing.trajectory import Step
from cryptomnesia.tracing.watching import watch


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

    def rows(self, rows: list[int]) -> "Baseline":
        """The baseline of some of the images."""
        return Baseline(
            self.denoiser, input_rows(self.inputs, rows), None if self.seen is None else self.seen.rows(rows)
        )

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


def reading(pipe: Any, prompts: Sequence[str], sampling: Sampling) -> Baseline:
    """The network of a pipeline under its own reading of the captions."""
    return Baseline(adapter_for(pipe).denoiser(), conditioning(pipe, prompts, sampling))


def empty_caption(pipe: Any, count: int, sampling: Sampling) -> Baseline:
    """The model itself, asked with an empty caption: for runs without an unconditional branch.

    The caption is encoded like any other; SDXL's own unconditional branch is fed zeros in its place.
    """
    return reading(pipe, [""] * count, sampling)


def checkpoint(pipe: Any, other: Any, prompts: Sequence[str], sampling: Sampling) -> Baseline:
    """Another checkpoint, with its own reading of the captions.

    Args:
        pipe: the pipeline whose generations are mapped.
        other: a pipeline around a less-trained checkpoint of the same model.
        prompts: the captions of the images.
        sampling: the settings of the generation.

    Raises:
        UsageError: if the two do not speak of the same latents.
    """
    check_checkpoint(pipe, other)
    return reading(other, prompts, sampling)


def check_checkpoint(pipe: Any, other: Any) -> None:
    """See that another checkpoint speaks of the same latents.

    Raises:
        UsageError: naming everything that differs.
    """
    first: Any = adapter_for(pipe)
    second: Any = adapter_for(other)
    differences = {
        "family": (type(pipe).__name__, type(other).__name__),
        "prediction type": (first.kind, second.kind),
        "dtype": (first.module.dtype, second.module.dtype),
        "latent channels": (first.module.config.in_channels, second.module.config.in_channels),
        "latent size": (first.module.config.get("sample_size"), second.module.config.get("sample_size")),
        "noise schedule": (_schedule(pipe), _schedule(other)),
        "autoencoder": (_autoencoder(pipe), _autoencoder(other)),
    }
    differing = [f"{name} is {b}, the model's {a}" for name, (a, b) in differences.items() if a != b]
    if differing:
        raise UsageError(
            f"the baseline does not fit the model: {'; '.join(differing)}; give a checkpoint of the same model"
        )


def conditioning(pipe: Any, prompts: Sequence[str], sampling: Sampling) -> Inputs:
    """What the pipeline gives its network for the captions, read off a call that ends after one evaluation."""

    def stop(_: int) -> None:
        pipe._interrupt = True

    bar = getattr(pipe, "_progress_bar_config", {})
    pipe.set_progress_bar_config(**{**bar, "disable": True})
    try:
        with watch(pipe, keep=(0,), after_step=stop) as seen:
            pipe(
                **adapter_for(pipe).arguments(prompts, replace(sampling, steps=2)),
                generator=[torch.Generator().manual_seed(0) for _ in prompts],
                output_type="latent",
            )
    finally:
        pipe._interrupt = False
        pipe.set_progress_bar_config(**bar)
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
    """A few places of the noise schedule, in words."""
    schedule = adapter_for(pipe).schedule
    return ", ".join(f"{schedule(t)[0].item():.6f}" for t in (0, 500, 999))


def _autoencoder(pipe: Any) -> str:
    return weights_digests(pipe).get("vae", "none")[:12]
