"""What a curvature map costs: the part `curvature` of docs/results/speed.json, which speed.py makes, and a picture.

The released procedure, implemented plainly: one image at a time; both branches in one batch as the pipeline evaluates
them, 16 random probes in reverse mode through both of them, the graph kept throughout; the trajectory run again for
every map. This library: eight images at once, the difference of the branches estimated as a whole, orthogonal probes,
finite differences, both maps from the one generation. All of its evaluations keep within the same `memory`, a part of
what the released procedure takes.

`error`: the root mean square error against the exact diagonal of Δh, divided by the root mean square of that diagonal.
`speedup_estimator`: this library with the design and number of probes that is fastest among those whose error is not
above that of the released procedure. `speedup_procedure`: generation, Δh and Δs. Both are medians, with 95% intervals,
over rounds in which either side runs once, so that whatever else the machine does affects both alike.
`memory_ratio`: the most bytes of tensors alive at once while the eight images are mapped, this library's divided by the
released procedure's; weights are there anyway and do not count.

`large`: a UNet of SD 1.4's size with random weights in fp32: the time of one Δh from half of the usual probes, to which
it is proportional, in units of one evaluation of both branches, and the peak resident memory of a process that does
nothing else.
"""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from common import Start
from overhead import EMBEDS, median, sd14_size
from torch import Tensor

from cryptomnesia import CurvatureDifference, DiagonalEstimator, ScoreDifference, watch
from cryptomnesia.localizers import Watched
from cryptomnesia.localizers.jacobian.memory import peak_bytes
from cryptomnesia.pipelines.families import family_of
from cryptomnesia.pipelines.inputs import together
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.proving_ground import BUNDLE
from cryptomnesia.proving_ground.manifest import Manifest
from cryptomnesia.tracing.generation import generate

IMAGES = 8
STEP = CurvatureDifference().step
"""The evaluation that both procedures map; Δs is of the last one."""
RELEASED_PROBES = 16
ROUNDS = 5
PROCEDURE_ROUNDS = 3
SEEDS = (0, 1)
LARGE_PROBES = 8
SHARE = 0.33
"""The part of the released procedure's memory that an evaluation of this library may take."""
CURVES = {
    **{f"finite, orthogonal in {group}": {"engine": "finite", "group": group} for group in (4, 7, 8, 16)},
    "finite, random": {"engine": "finite", "design": "random"},
    "reverse, orthogonal in 8": {"engine": "reverse", "group": 8},
    "reverse, random": {"engine": "reverse", "design": "random"},
    "forward, orthogonal in 8": {"engine": "forward", "group": 8},
    "forward, random": {"engine": "forward", "design": "random"},
}
"""Every engine with either design."""
PROBES = (7, 8, 14, 16, 28, 32)
"""Of these a curve has the multiples of its group, and random probes those of eight."""


def measure(pipe: Any, start: Start) -> dict[str, Any]:
    """All figures."""
    manifest = Manifest.load(BUNDLE)
    manifest.check(pipe)
    setup = Setup.of(pipe, {"num_inference_steps": manifest.steps})
    top = [e for e in manifest.entries if e.kind == "template" and e.exposures == manifest.top]
    prompts = [e.captions[0] for e in top[:IMAGES]]
    (batch,) = generate(setup, prompts, range(IMAGES), batch_size=IMAGES, keep=(STEP,))
    watched = Watched(batch.trajectory, setup.family.denoiser(), seeds=batch.seeds)
    exact = difference(watched, DiagonalEstimator(engine="exact"))
    released_peak = peak_bytes(lambda: released(watched))
    memory = int(SHARE * released_peak)

    of_released = cost(lambda seed: released(watched, seed), exact)
    estimators = {
        (name, str(probes)): DiagonalEstimator(probes=probes, memory=memory, **settings)
        for name, settings in CURVES.items()
        for probes in PROBES
        if probes % settings.get("group", 8) == 0
    }
    curves: dict[str, dict[str, Any]] = {}
    tell = start("curves", len(estimators))
    for number, ((name, probes), estimator) in enumerate(estimators.items(), start=1):
        curves.setdefault(name, {})[probes] = cost(
            lambda seed: difference(watched, replace(estimator, seed=seed)),  # noqa: B023
            exact,
        )
        tell(number)
    draw(curves, of_released)
    enough = [
        key for key in estimators if "finite" in key[0] and curves[key[0]][key[1]]["error"] <= of_released["error"]
    ]
    figures: dict[str, Any] = {
        "released": of_released,
        "curves": curves,
        "memory": memory,
        "speedup_estimator": None,
        "speedup_procedure": None,
        "memory_ratio": None,
    }
    if enough:
        chosen = min(enough, key=lambda key: curves[key[0]][key[1]]["seconds"])
        fastest = estimators[chosen]
        figures |= {
            "chosen": list(chosen),
            "speedup_estimator": speedup(
                lambda: released(watched), lambda: difference(watched, fastest), ROUNDS, start, "estimator"
            ),
            "speedup_procedure": speedup(
                lambda: procedure_released(setup, prompts),
                lambda: procedure_here(setup, prompts, fastest),
                PROCEDURE_ROUNDS,
                start,
                "procedure",
            ),
            "memory_ratio": peak_bytes(lambda: difference(watched, fastest)) / released_peak,
        }
    child = subprocess.run([sys.executable, __file__, "large"], stdout=subprocess.PIPE, check=True)
    return {**figures, "large": json.loads(child.stdout), "threads": torch.get_num_threads()}


def released(watched: Watched, seed: int = 0) -> Tensor:
    """Δh per channel by the released procedure, (B, C, h, w)."""
    generator = torch.Generator().manual_seed(seed)
    differences = []
    for row in range(len(watched.trajectory.latents)):
        step = watched.trajectory.rows([row]).step(STEP)
        assert step.uncond_inputs is not None
        with torch.enable_grad():
            x = torch.cat([step.cond.x] * 2).requires_grad_()
            epsilon = watched.denoiser(x, step.level, together(step.cond_inputs, step.uncond_inputs)).epsilon
            total = torch.zeros_like(x)
            for _ in range(RELEASED_PROBES):
                probe = (torch.randint(0, 2, step.cond.x.shape, generator=generator).float() * 2 - 1).repeat(2, 1, 1, 1)
                (product,) = torch.autograd.grad(epsilon, x, probe, retain_graph=True)
                total += probe * product
        cond, uncond = (total / RELEASED_PROBES).chunk(2)
        differences.append((cond - uncond) / step.cond.sigma)
    return torch.cat(differences)


def difference(watched: Watched, estimator: DiagonalEstimator) -> Tensor:
    """Δh per channel by `CurvatureDifference`, (B, C, h, w)."""
    return CurvatureDifference(estimator=estimator).difference(watched).value


def procedure_released(setup: Setup, prompts: list[str]) -> None:
    """Δh and Δs, each from a trajectory of its own, one image at a time."""
    denoiser = setup.family.denoiser()
    for seed, prompt in enumerate(prompts):
        for make in (released, ScoreDifference().map):
            (batch,) = generate(setup, [prompt], [seed], keep=(STEP, -1))
            make(Watched(batch.trajectory, denoiser))


def procedure_here(setup: Setup, prompts: list[str], estimator: DiagonalEstimator) -> None:
    """Δh and Δs from one generation of all images."""
    (batch,) = generate(setup, prompts, range(len(prompts)), batch_size=len(prompts), keep=(STEP, -1))
    watched = Watched(batch.trajectory, setup.family.denoiser(), seeds=batch.seeds)
    CurvatureDifference(estimator=estimator).map(watched)
    ScoreDifference().map(watched)


def cost(estimate: Callable[[int], Tensor], exact: Tensor) -> dict[str, float]:
    """Least seconds and mean relative error over some seeds."""
    seconds, errors = [], []
    for seed in SEEDS:
        estimates: list[Tensor] = []
        seconds.append(timed(lambda: estimates.append(estimate(seed))))  # noqa: B023
        errors.append(((estimates[0] - exact).square().mean() / exact.square().mean()).sqrt().item())
    return {"seconds": min(seconds), "error": float(np.mean(errors))}


def speedup(
    of_released: Callable[[], Any], here: Callable[[], Any], rounds: int, start: Start, what: str
) -> dict[str, float]:
    """How many times longer the released procedure takes: median over rounds with its interval, and seconds of both."""
    tell = start(what, rounds)
    sides = {"released": of_released, "ours": here}
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    of_released()
    here()
    for number in range(rounds):
        for side in ("ours", "released") if number % 2 else ("released", "ours"):
            seconds[side].append(timed(sides[side]))
        tell(number + 1)
    ratios = np.array(seconds["released"]) / np.array(seconds["ours"])
    return {
        **median(ratios),
        "seconds_released": float(np.median(seconds["released"])),
        "seconds_ours": float(np.median(seconds["ours"])),
        "rounds": rounds,
    }


def large() -> dict[str, float]:
    """One map on a UNet of SD 1.4's size."""
    pipe, _ = sd14_size()
    denoiser = family_of(pipe).denoiser()
    with watch(pipe, keep=(STEP,)) as seen:
        pipe(prompt_embeds=EMBEDS, negative_prompt_embeds=EMBEDS, num_inference_steps=2, output_type="latent")
    watched = Watched(seen.trajectory, denoiser)
    step = watched.trajectory.step(STEP)
    both = {"encoder_hidden_states": torch.cat([EMBEDS] * 2)}
    localizer = CurvatureDifference(estimator=DiagonalEstimator(probes=LARGE_PROBES, group=LARGE_PROBES))

    @torch.no_grad()
    def evaluate() -> None:
        denoiser(torch.cat([step.cond.x] * 2), step.level, both)

    # before and after the map, since the machine may not be equally fast throughout
    before = [timed(evaluate) for _ in range(3)]
    seconds = timed(lambda: localizer.map(watched))
    evaluation = min(before + [timed(evaluate) for _ in range(3)])
    # not ru_maxrss, which a process inherits from its parent
    high = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert high is not None
    return {
        "probes": localizer.estimator.probes,
        "memory": localizer.estimator.memory,
        "evaluations": seconds / evaluation,
        "evaluations_per_probe": seconds / evaluation / LARGE_PROBES,
        "seconds_per_evaluation": evaluation,
        "peak_bytes": int(high[1]) * 1024,
    }


def timed(call: Callable[[], Any]) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def draw(curves: dict[str, dict[str, Any]], of_released: dict[str, float]) -> None:
    """Error against seconds, one line per engine and design."""
    figure, axes = plt.subplots(figsize=(6, 4.8), layout="constrained")
    for name, points in curves.items():
        axes.plot(
            [point["seconds"] for point in points.values()],
            [point["error"] for point in points.values()],
            "--" if "random" in name else "-",
            marker=".",
            label=name,
        )
    axes.plot(of_released["seconds"], of_released["error"], "k*", markersize=12, label="released procedure")
    axes.set(xscale="log", yscale="log", xlabel="seconds for eight images", ylabel="relative error of Δh")
    axes.grid(alpha=0.3, which="both")
    figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    figure.savefig("docs/images/curvature_cost.png", dpi=150)


if __name__ == "__main__":
    # `peak_bytes` of the large network is that of a process that does nothing else
    sys.stdout.write(json.dumps(large()))
