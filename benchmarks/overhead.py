"""What guarding costs: the part `guard` of docs/results/speed.json, which speed.py makes.

Unguarded and guarded calls of the same pipeline alternate, so that whatever else the machine does affects both alike.
Every figure is a median over rounds with the 95% bootstrap interval of that median.

`overhead_observe`, `overhead_mitigate`, `overhead_rephrase`: (guarded − unguarded)/unguarded on the bundled model, one
image per call and 50 steps, as a service would call it, with an ordinary caption, which is what nearly every call has:
observed, under the published rule, and under `Rephrasing`. A call in which the guard does something is an error.
`overhead_sd14_size`: the same, observed, with a few steps of a UNet of SD 1.4's size with random weights; the overhead
of a step does not depend on how many steps there are.
`corrected`: a planted caption that the published rule corrects: extra seconds, overhead, and evaluations corrected;
null if it corrects none.
`where`: seconds of one observed call in `settings` (does the call fit the calibration?), `hook` (which branch is
which), `step` (norms, around the solver's own step) and `judging` (score, p-value, verdict); `share` is their sum
divided by the seconds of the call.
`peak_extra_bytes`: by number of steps, the most bytes of tensors alive at once in an observed call, less those in a
plain one.
"""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from functools import partial, wraps
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from common import Start, Tell
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

from cryptomnesia import Calibration, Guard, StabilityRule, Trajectory, Verdict
from cryptomnesia.calibration import Judge
from cryptomnesia.guarding.judges import Judges
from cryptomnesia.localizers.jacobian.memory import peak_bytes
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.proving_ground import BUNDLE
from cryptomnesia.proving_ground.manifest import Manifest
from cryptomnesia.tracing.trajectory import NORMS
from cryptomnesia.tracing.watching import Watch

ORDINARY = "a red circle on a blue ground"
ROUNDS = 60
CORRECTED_ROUNDS = 20
LARGE_ROUNDS = 4
LARGE_STEPS = 3
EMBEDS = torch.zeros(1, 77, 768)
"""What the large model reads; it has no text encoder."""
PROFILED_CALLS = 10
LARGE_PROFILED_CALLS = 2


def measure(pipe: Any, start: Start) -> dict[str, Any]:
    """All figures."""
    manifest = Manifest.load(BUNDLE)
    pipe.set_progress_bar_config(disable=True)
    published = Guard(pipe, policy="mitigate", mitigation=StabilityRule())
    call = partial(generated, pipe, ORDINARY, manifest.steps)
    guards = {
        "observe": Guard(pipe),
        "mitigate": published,
        "rephrase": Guard(pipe, policy="mitigate", mitigation="rephrasing"),
    }
    figures: dict[str, Any] = {
        f"overhead_{name}": overhead(call, guarding, ROUNDS, start(name, ROUNDS)) for name, guarding in guards.items()
    }
    planted = [e.captions[0] for e in manifest.entries if e.planted and e.exposures == manifest.top]
    figures["corrected"] = corrected(
        [partial(generated, pipe, caption, manifest.steps) for caption in planted],
        published,
        start("corrected", CORRECTED_ROUNDS),
    )
    figures["where"] = where(call, guards["observe"], PROFILED_CALLS)
    figures["peak_extra_bytes"] = {
        str(steps): peak_extra_bytes(
            partial(generated, pipe, ORDINARY, steps),
            Guard(pipe, permissive(Setup.of(pipe, {"num_inference_steps": steps}))),
        )
        for steps in (5, 50)
    }
    large, large_calibration = sd14_size()

    def big() -> None:
        large(
            prompt_embeds=EMBEDS,
            negative_prompt_embeds=EMBEDS,
            num_inference_steps=LARGE_STEPS,
            generator=torch.Generator().manual_seed(0),
            output_type="latent",
        )

    observing = Guard(large, large_calibration)
    figures["overhead_sd14_size"] = overhead(
        big, observing, LARGE_ROUNDS, start("SD 1.4's size, observe", LARGE_ROUNDS)
    )
    figures["where_sd14_size"] = where(big, observing, LARGE_PROFILED_CALLS)
    return {**figures, "threads": torch.get_num_threads()}


def generated(pipe: Any, caption: str, steps: int) -> None:
    """One image."""
    pipe(caption, num_inference_steps=steps, generator=torch.Generator().manual_seed(0))


def overhead(call: Callable[[], None], guarding: Guard, rounds: int, tell: Tell) -> dict[str, float]:
    """Relative extra time of a guarded call whose image is returned as it is, and the seconds of a plain call."""
    plain, extra = timed(call, guarding, rounds, tell, lambda verdict: verdict.clean and verdict.action == "none")
    return {**median(extra / plain), "seconds": float(np.median(plain)), "rounds": rounds}


def corrected(calls: list[Callable[[], None]], guarding: Guard, tell: Tell) -> dict[str, Any] | None:
    """What a correction costs, in the first call that the rule corrects; None if it corrects none."""
    for call in calls:
        with guarding:
            call()
        if evaluations := len(guarding.verdicts[0].corrected):
            plain, extra = timed(call, guarding, CORRECTED_ROUNDS, tell, lambda verdict: bool(verdict.corrected))
            return {"extra_seconds": median(extra), "overhead": median(extra / plain), "evaluations": evaluations}
    return None


def timed(
    call: Callable[[], None], guarding: Guard, rounds: int, tell: Tell, expected: Callable[[Verdict], bool]
) -> tuple[np.ndarray, np.ndarray]:
    """Seconds of plain calls, and extra seconds of guarded ones, both (rounds,).

    Raises:
        RuntimeError: if a verdict is not as expected.
    """
    seconds = np.empty((rounds, 2))
    call()
    for number in range(rounds):
        for guarded in (0, 1) if number % 2 else (1, 0):
            with guarding if guarded else nullcontext():
                begin = time.perf_counter()
                call()
                seconds[number, guarded] = time.perf_counter() - begin
        if not all(map(expected, guarding.verdicts)):
            raise RuntimeError(f"got {guarding.verdicts[0]}; time another caption or seed")
        tell(number + 1)
    return seconds[:, 0], seconds[:, 1] - seconds[:, 0]


def median(values: np.ndarray) -> dict[str, float]:
    """The median with its 95% bootstrap interval."""
    rng = np.random.default_rng(0)
    medians = [np.median(rng.choice(values, len(values))) for _ in range(2000)]
    low, high = np.quantile(medians, [0.025, 0.975])
    return {"value": float(np.median(values)), "low": float(low), "high": float(high)}


def where(call: Callable[[], None], guarding: Guard, calls: int) -> dict[str, float]:
    """Seconds of a guarded call by part, medians over calls, and the parts' `share` of the call."""
    seconds: defaultdict[str, float] = defaultdict(float)

    def clocked(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                seconds[part] += time.perf_counter() - begin

        # the clock around the solver's step changes no picture, which the guard would otherwise not know
        run.cryptomnesia_fingerprint = ""  # type: ignore[attr-defined]
        return run

    parts = {
        "settings": (Judges, "fitting"),
        "hook": (Watch, "on_forward"),
        "step": (Watch, "on_step"),
        "judging": (Judge, "__call__"),
        "solver": (guarding.pipe.scheduler, "step"),
    }
    profiles = []
    with ExitStack() as stack:
        for part, (owner, name) in parts.items():
            stack.enter_context(patch.object(owner, name, clocked(part, getattr(owner, name))))
        stack.enter_context(guarding)
        for _ in range(calls):
            seconds.clear()
            clocked("call", call)()
            profile = {part: seconds[part] for part in parts}
            # the guard's step holds the solver's own
            profile["step"] -= profile.pop("solver")
            profiles.append({**profile, "share": sum(profile.values()) / seconds["call"]})
    return {part: statistics.median(profile[part] for profile in profiles) for part in profiles[0]}


def peak_extra_bytes(call: Callable[[], None], guarding: Guard) -> int:
    """Bytes by which the peak of a guarded call lies above that of a plain call."""
    peaks = []
    for guarded in (False, True):
        with guarding if guarded else nullcontext():
            peaks.append(peak_bytes(call))
    return peaks[1] - peaks[0]


def sd14_size(
    steps: int = LARGE_STEPS, device: str = "cpu", dtype: torch.dtype = torch.float32, **unet: Any
) -> tuple[Any, Calibration]:
    """A pipeline around a random UNet of SD 1.4's size, and a calibration under which nothing is flagged.

    Args:
        steps: of the calls that the calibration is for.
        device: of the networks.
        dtype: of their weights.
        **unet: what of the UNet's configuration differs.
    """
    torch.manual_seed(0)
    with torch.device(device):  # a GPU draws so many weights faster than a CPU
        network = UNet2DConditionModel(
            **{"cross_attention_dim": 768, "attention_head_dim": 8, "sample_size": 64} | unet
        )
    pipe = StableDiffusionPipeline(
        vae=AutoencoderKL(block_out_channels=(32, 32, 32, 32)),
        text_encoder=None,  # pyright: ignore[reportArgumentType]
        tokenizer=None,  # pyright: ignore[reportArgumentType]
        unet=network.eval(),
        scheduler=DDIMScheduler(  # pyright: ignore[reportArgumentType]
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, steps_offset=1
        ),
        safety_checker=None,  # pyright: ignore[reportArgumentType]
        feature_extractor=None,  # pyright: ignore[reportArgumentType]
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.to(device, dtype)
    negative = EMBEDS.to(device, dtype)
    return pipe, permissive(Setup.of(pipe, {"num_inference_steps": steps, "negative_prompt_embeds": negative}))


def permissive(setup: Setup) -> Calibration:
    """A calibration under which nothing is flagged: its made-up reference runs differ so much that no score is high."""
    scheduler = setup.pipe.scheduler
    scheduler.set_timesteps(setup.sampling.steps)
    timesteps = tuple(float(t) for t in scheduler.timesteps)
    rng = torch.Generator().manual_seed(0)
    # over many orders of magnitude, so that every real run lies in the middle
    norms = {name: 10 ** (20 * torch.rand(150, len(timesteps), generator=rng) - 10) for name in NORMS}
    runs = Trajectory(timesteps, norms, {}, torch.empty(150, 0), complete=True)
    return Calibration(setup.fingerprint, runs, maps={}, made_by={}, prompts_sha256="")
