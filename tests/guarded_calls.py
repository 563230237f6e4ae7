"""Calls of miniatures behind a guard."""

from typing import Any

import torch

from cryptomnesia import StabilityRule
from cryptomnesia.guarding.calls import Noise

ALWAYS = StabilityRule(tau_mild=-1.0, tau_strong=-1.0)
"""Corrects every image at every evaluation."""

NEVER = StabilityRule(tau_mild=1e9)
"""Corrects nothing."""


def call(pipe: Any, prompt: Any = "a red circle", seeds: Any = (0,), **settings: Any) -> Any:
    """The images of one call, one for every seed."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    usual = {"num_inference_steps": 3, "guidance_scale": 2.0, "output_type": "np", "generator": generators}
    return pipe(prompt, **{**usual, **settings}).images


def another(seeds: Any, row: int, attempt: int = 1) -> torch.Generator:
    """The generator with which a guard makes image `row` of a call again."""
    noise = Noise({"generator": [torch.Generator().manual_seed(seed) for seed in seeds]})
    return noise.other(row, attempt)["generator"]
