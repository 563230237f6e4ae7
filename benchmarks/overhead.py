"""What guarding costs in time: docs/results/overhead.json.

    python benchmarks/overhead.py > docs/results/overhead.json

Unguarded and guarded calls of the same pipeline in alternation, so that whatever else the machine does meets
both alike; the figure is the median over rounds of (guarded − unguarded)/unguarded, with a
95% bootstrap interval of that median. On the bundled model one image per call and 50 steps, as a service would; under
`mitigate` an ordinary caption, which is what nearly every call is. On a UNet of SD 1.4's size with random weights a
few steps: the overhead of a step does not depend on how many there are.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from rich.console import Console
from rich.progress import track

from cryptomnesia import Calibration, Guard, Sampling, StabilityRule
from cryptomnesia.calibrate import fingerprint
from cryptomnesia.detectors.base import Moments, Reference
from cryptomnesia.models import load_pipeline
from cryptomnesia.proving_ground import BUNDLE
from cryptomnesia.proving_ground.manifest import Manifest

ROUNDS = 60
LARGE_ROUNDS = 6
LARGE_STEPS = 3


def main() -> None:
    """Measure and print JSON."""
    manifest = Manifest.load(BUNDLE)
    pipe = load_pipeline("bundled", device="cpu")
    calibration = Calibration.load(BUNDLE / "calibration.safetensors")

    def small() -> None:
        pipe(
            "a red circle on a blue ground",
            num_inference_steps=manifest.steps,
            guidance_scale=manifest.guidance,
            generator=torch.Generator().manual_seed(0),
        )

    pipe.set_progress_bar_config(disable=True)
    figures: dict[str, Any] = {
        "overhead_observe": overhead(small, Guard(pipe, calibration), ROUNDS, "observe"),
        "overhead_mitigate": overhead(
            small, Guard(pipe, calibration, policy="mitigate", rule=StabilityRule()), ROUNDS, "mitigate"
        ),
        "overhead_rephrase": overhead(small, Guard(pipe, calibration, policy="mitigate"), ROUNDS, "rephrase"),
    }
    large, large_calibration = sd14_size()
    embeds = torch.zeros(1, 77, 768)

    def big() -> None:
        large(
            prompt_embeds=embeds,
            num_inference_steps=LARGE_STEPS,
            generator=torch.Generator().manual_seed(0),
            output_type="latent",
        )

    observing = Guard(large, large_calibration)
    figures["overhead_sd14_size"] = overhead(big, observing, LARGE_ROUNDS, "SD 1.4's size, observe")
    figures["threads"] = torch.get_num_threads()
    sys.stdout.write(json.dumps(figures, indent=2) + "\n")


def overhead(call: Callable[[], None], guarding: Guard, rounds: int, what: str) -> dict[str, float]:
    """Relative extra time of a guarded call, and the seconds of a plain one."""
    console = Console(stderr=True)
    plain, extra = [], []
    call()
    for number in track(range(rounds), what, console=console, disable=not console.is_terminal):
        times = {}
        for guarded in (False, True) if number % 2 else (True, False):
            if guarded:
                guarding.attach()
            start = time.perf_counter()
            call()
            times[guarded] = time.perf_counter() - start
            guarding.detach()
        plain.append(times[False])
        extra.append((times[True] - times[False]) / times[False])
    rng = np.random.default_rng(0)
    medians = [np.median(rng.choice(extra, len(extra))) for _ in range(2000)]
    low, high = np.quantile(medians, [0.025, 0.975])
    return {
        "value": statistics.median(extra),
        "low": float(low),
        "high": float(high),
        "seconds": statistics.median(plain),
        "rounds": rounds,
    }


def sd14_size() -> tuple[Any, Calibration]:
    """A pipeline around a random UNet of SD 1.4's size, and a calibration that nothing is flagged under."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8, sample_size=64)
    pipe = StableDiffusionPipeline(
        vae=AutoencoderKL(block_out_channels=(32, 32, 32, 32)),
        text_encoder=None,  # pyright: ignore[reportArgumentType]
        tokenizer=None,  # pyright: ignore[reportArgumentType]
        unet=unet.eval(),
        scheduler=DDIMScheduler(  # pyright: ignore[reportArgumentType]
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, steps_offset=1
        ),
        safety_checker=None,  # pyright: ignore[reportArgumentType]
        feature_extractor=None,  # pyright: ignore[reportArgumentType]
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    flat = Moments(torch.ones(LARGE_STEPS), torch.full((LARGE_STEPS,), 1e9))
    null = {"stability": torch.full((99, LARGE_STEPS), 1e9)}
    setup = fingerprint(pipe, Sampling(LARGE_STEPS))
    return pipe, Calibration(setup, Reference(flat, flat, flat), null, prompts_sha256="", prompts=0)


if __name__ == "__main__":
    main()
