"""The set-ups in which methods are tried: miniatures of all families, with and without an unconditional branch."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers import DDIMPipeline, DDPMPipeline
from torch import nn

from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.testing import miniatures

STEPS = 4
"""Solver steps of a run: with fewer some maps of flow models would be refused."""

PROMPTS = ("a red circle", "a small striped blue star", "a green ring", "a white square on black")
"""Captions of the runs that are judged."""

REFERENCES = tuple(f"a {colour} {shape}" for colour in ("blue", "pink", "white") for shape in ("bar", "disc", "heart"))
"""Captions of the reference runs."""

SHORT = {"max_sequence_length": 32}
"""For transformers, which otherwise read 256 or 512 tokens of every caption."""

FLUX = {"height": 16, "width": 16, **SHORT}
"""For Flux, whose pipeline has a size of its own, far above the miniature's."""


def twin(pipe: Any) -> Any:
    """A pipeline whose network has other weights, as a less-trained checkpoint has."""
    with torch.no_grad():
        for weight in (pipe.unet if hasattr(pipe, "unet") else pipe.transformer).parameters():
            weight.mul_(0.9)
    return pipe


def halved(pipe: Any) -> Any:
    """The pipeline with all of its networks in bfloat16."""
    for network in pipe.components.values():
        if isinstance(network, nn.Module):
            # a model's own `to` would log that it is no loading option
            nn.Module.to(network, torch.bfloat16)
    return pipe


def _setup(pipe: Any, checkpoint: Any = None, **call: Any) -> Setup:
    return Setup.of(pipe, {"num_inference_steps": STEPS, **call}, checkpoint)


def _stable_diffusion() -> Setup:
    made = miniatures.stable_diffusion
    return _setup(made(), twin(made()), guidance_scale=2.0)


def _unconditional() -> Setup:
    made = miniatures.unconditional
    return _setup(made(DDIMPipeline), twin(made(DDIMPipeline)))


SETUPS: Mapping[str, Callable[[], Setup]] = {
    "Stable Diffusion": _stable_diffusion,
    "Stable Diffusion, v-prediction": lambda: _setup(
        miniatures.stable_diffusion("v_prediction"), guidance_scale=2.0, negative_prompt="grey"
    ),
    "Stable Diffusion without guidance": lambda: _setup(miniatures.stable_diffusion(), guidance_scale=1.0),
    "SDXL": lambda: _setup(miniatures.stable_diffusion_xl(), guidance_scale=2.0),
    "SD 3": lambda: _setup(miniatures.stable_diffusion_3(), guidance_scale=2.0, **SHORT),
    "Flux": lambda: _setup(miniatures.flux(), **FLUX),
    "Flux with true guidance": lambda: _setup(miniatures.flux(), **FLUX, **miniatures.TRUE_GUIDANCE),
    "DDIM": _unconditional,
    "DDPM": lambda: _setup(miniatures.unconditional(DDPMPipeline)),
}
"""Name → what makes the set-up. Those of Stable Diffusion with guidance and of DDIM have a less-trained checkpoint."""
