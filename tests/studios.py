"""A studio without a guard, and images as a detection hands them to a mitigation."""

from typing import Any

import torch

from cryptomnesia.calibration.judging import Judge
from cryptomnesia.calibration.recording import fitted
from cryptomnesia.detectors import default_detector
from cryptomnesia.guarding.making import Maker
from cryptomnesia.mitigations import Flagged
from cryptomnesia.pipelines.call import silent
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.testing.setups import REFERENCES
from cryptomnesia.tracing.generation import generate
from cryptomnesia.verdicts import Verdict


def studio_of(setup: Setup) -> Maker:
    """A studio of a set-up with a few reference runs."""
    (batch,) = generate(setup, REFERENCES, range(100, 100 + len(REFERENCES)), batch_size=len(REFERENCES), decode=False)
    calibration = fitted(setup, REFERENCES, batch.trajectory.bare(), {})
    return Maker(setup.pipe, Judge(calibration, default_detector(setup), 0.5), batch=4)


def flagged_of(setup: Setup, *prompts: str) -> list[Flagged]:
    """Flagged images with the seeds 0, 1, …"""
    return [Flagged(_call(setup, prompt, seed), _verdict(prompt, seed)) for seed, prompt in enumerate(prompts)]


def _call(setup: Setup, prompt: str, seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    return {**setup.family.arguments([prompt], setup.sampling), "generator": generator, "output_type": "latent"}


def _verdict(prompt: str, image: int) -> Verdict:
    return Verdict(
        image=image, prompt=prompt, detector="drift", fpr=0.5, score=1.0, p_value=0.01, flagged=True,
        first_flagged_step=1, reason="flagged by the test",
    )  # fmt: skip


def made_latents(setup: Setup, prompts: list[str], *, watching: Any, **more: Any) -> torch.Tensor:
    """The latents of images with seeds 0, 1, …, made in one call under a watch."""
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]
    with silent(setup.pipe), watching as seen:
        setup.pipe(
            **{**setup.family.arguments(prompts, setup.sampling), **more}, generator=generators, output_type="latent"
        )
    return seen.trajectory.latents
