"""Stock solvers on a miniature pipeline."""

from inspect import signature
from typing import Any

import diffusers
import torch

from cryptomnesia.testing.miniatures import stable_diffusion

SOLVERS = {
    "DDIM": ("DDIMScheduler", {}),
    "DDIM, η = 1": ("DDIMScheduler", {}),
    "DDIM trailing": ("DDIMScheduler", {"timestep_spacing": "trailing"}),
    "DDPM": ("DDPMScheduler", {}),
    "DEIS": ("DEISMultistepScheduler", {}),
    "DPM++ 2M": ("DPMSolverMultistepScheduler", {}),
    "DPM++ 2M Karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "DPM++ 2M SDE": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "DPM++ 2M SDE Karras": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True},
    ),
    "DPM++ 2S": ("DPMSolverSinglestepScheduler", {}),
    "Euler": ("EulerDiscreteScheduler", {}),
    "Euler Karras": ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    "Euler ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "Heun": ("HeunDiscreteScheduler", {}),
    "KDPM2": ("KDPM2DiscreteScheduler", {}),
    "KDPM2 ancestral": ("KDPM2AncestralDiscreteScheduler", {}),
    "LMS": ("LMSDiscreteScheduler", {}),
    "PNDM": ("PNDMScheduler", {"skip_prk_steps": True}),
    "UniPC": ("UniPCMultistepScheduler", {}),
}
"""Every way of sampling that is promised to be steerable, on a variance-preserving model."""

NOISY = ("η = 1", "DDPM", "SDE", "ancestral")


def with_solver(name: str, prediction: str = "epsilon") -> Any:
    pipe = stable_diffusion(prediction)
    name, options = SOLVERS[name]
    kind = getattr(diffusers, name)
    more = {"clip_sample": False} if "clip_sample" in signature(kind).parameters else {}
    pipe.scheduler = kind.from_config(pipe.scheduler.config, **more, **options)
    return pipe


def call(pipe: Any, name: str, seeds: tuple[int, ...] = (0, 1), steps: int = 8) -> torch.Tensor:
    return pipe(
        ["a red circle"] * len(seeds),
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        num_inference_steps=steps,
        guidance_scale=2.0,
        eta=float("η" in name),
        output_type="latent",
    ).images
