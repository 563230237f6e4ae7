"""What a curvature map costs, against the released procedure: docs/results/curvature_speed.json and a picture.

    python benchmarks/curvature_speed.py > docs/results/curvature_speed.json

The released procedure, implemented plainly: one image at a time; 16 random probes in reverse mode through either
branch, their graphs kept; the trajectory run again for every map. Ours: eight images at once, the difference of the
branches estimated as a whole, orthogonal probes, finite differences, both maps from the one generation. The error is
the root mean square one against the exact diagonal, over that diagonal's own root mean square. `speedup_estimator`
compares the times at equal error: ours with the fewest probes whose error is not above the released procedure's.

Peak memory is measured in processes of their own, over what loading the model and generating takes already.
`large` is a UNet of SD 1.4's size with random weights: one map, in units of one evaluation of both branches.
"""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import matplotlib.pyplot as plt
import torch
from overhead import sd14_size
from torch import Tensor

from cryptomnesia import CurvatureDifference, Sampling, ScoreDifference, generate
from cryptomnesia.adapters import adapter_for
from cryptomnesia.localizers import DiagonalEstimator, Watched
from cryptomnesia.models import load_pipeline
from cryptomnesia.proving_ground import BUNDLE
from cryptomnesia.proving_ground.manifest import Manifest
from cryptomnesia.proving_ground.planted import TOP_RUNG
from cryptomnesia.trajectory import Step, watch

IMAGES = 8
RELEASED_PROBES = 16
PROBES = (16, 32, 48, 64, 96, 128)
REPEATS = 3
LARGE_PROBES = 16


def main() -> None:
    """Measure and print JSON, or with an argument run one procedure for its memory."""
    if len(sys.argv) > 1:
        sys.stdout.write(str(memory(sys.argv[1])))
        return
    pipe, prompts, sampling = setup()
    (batch,) = generate(pipe, prompts, range(IMAGES), sampling, batch_size=IMAGES, keep=(-1,))
    watched = Watched(batch.trajectory, adapter_for(pipe).denoiser())
    say("exact diagonal")
    exact = CurvatureDifference(estimator=DiagonalEstimator(engine="exact")).difference(watched).value
    say("released procedure")
    released = {
        "seconds": timed(lambda: released_maps(watched, RELEASED_PROBES)),
        "error": mean_error(lambda seed: released_maps(watched, RELEASED_PROBES, seed), exact),
    }
    curves: dict[str, dict[str, Any]] = {}
    for engine in ("finite", "reverse", "forward"):
        for design in ("orthogonal", "random"):
            say(f"{engine}, {design}")
            curves[f"{engine}, {design}"] = {
                str(count): {
                    "seconds": timed(lambda: ours(watched, engine, design, count)),  # noqa: B023
                    "error": mean_error(lambda seed: ours(watched, engine, design, count, seed), exact),  # noqa: B023
                }
                for count in PROBES
            }
    enough = [each for each in curves["finite, orthogonal"].values() if each["error"] <= released["error"]]
    estimator = min((each["seconds"] for each in enough), default=float("nan"))
    probes = next(
        (int(count) for count, each in curves["finite, orthogonal"].items() if each["error"] <= released["error"]), None
    )
    say("whole procedures")
    procedure = timed(lambda: whole_released(pipe, prompts, sampling), repeats=1)
    own = timed(lambda: whole_ours(pipe, prompts, sampling, probes or max(PROBES)))
    peaks = {
        name: int(subprocess.run([sys.executable, __file__, name], capture_output=True, text=True, check=True).stdout)
        for name in ("neither", "released", "ours")
    }
    draw(curves, released)
    figures = {
        "released": released,
        "curves": curves,
        "probes_at_equal_error": probes,
        "speedup_estimator": released["seconds"] / estimator,
        "speedup_procedure": procedure / own,
        "seconds_procedure": {"released": procedure, "ours": own},
        "memory_ratio": (peaks["ours"] - peaks["neither"]) / (peaks["released"] - peaks["neither"]),
        "peak_bytes": peaks,
        "large": large(),
        "threads": torch.get_num_threads(),
    }
    sys.stdout.write(json.dumps(figures, indent=2) + "\n")


def setup() -> tuple[Any, list[str], Sampling]:
    """The bundled pipeline, one caption of each of eight templates on the top rung, and its settings."""
    manifest = Manifest.load(BUNDLE)
    pipe = load_pipeline("bundled", device="cpu")
    pipe.set_progress_bar_config(disable=True)
    top = [e for e in manifest.entries if e.kind == "template" and e.exposures == TOP_RUNG]
    return pipe, [e.captions[0] for e in top[:IMAGES]], Sampling(manifest.steps, manifest.guidance)


def released_maps(watched: Watched, probes: int, seed: int = 0) -> Tensor:
    """Δh per channel by the released procedure, (B, C, h, w)."""
    step = watched.trajectory.step()
    generator = torch.Generator().manual_seed(seed)
    found = []
    for row in range(len(step.sample)):
        one = step.rows([row])
        cond, uncond = (
            one_branch(watched, one, inputs, probes, generator) for inputs in (one.cond_inputs, one.uncond_inputs)
        )
        found.append((cond - uncond) / one.cond.sigma)
    return torch.cat(found)


def one_branch(watched: Watched, one: Step, inputs: Any, probes: int, generator: torch.Generator) -> Tensor:
    """Hutchinson's estimate of the diagonal of one branch's Jacobian for one image, its graph kept throughout."""
    with torch.enable_grad():
        x = one.cond.x.detach().requires_grad_()
        epsilon = watched.denoiser(x, one.t, inputs).epsilon
        total = torch.zeros_like(x)
        for _ in range(probes):
            probe = torch.randint(0, 2, x.shape, generator=generator).float() * 2 - 1
            (product,) = torch.autograd.grad(epsilon, x, probe, retain_graph=True)
            total += probe * product
    return total / probes


def ours(watched: Watched, engine: Any, design: Any, probes: int, seed: int = 0) -> Tensor:
    """Δh per channel by `CurvatureDifference`, (B, C, h, w)."""
    estimator = DiagonalEstimator(engine=engine, design=design, probes=probes, seed=seed)
    return CurvatureDifference(estimator=estimator).difference(watched).value


def whole_released(pipe: Any, prompts: list[str], sampling: Sampling) -> None:
    """Δh and Δs, each from a trajectory of its own, one image at a time."""
    view = adapter_for(pipe).denoiser()
    for seed, prompt in enumerate(prompts):
        for kind in ("curvature", "score"):
            (batch,) = generate(pipe, [prompt], [seed], sampling, keep=(-1,))
            watched = Watched(batch.trajectory, view)
            if kind == "curvature":
                released_maps(watched, RELEASED_PROBES)
            else:
                ScoreDifference().map(watched)


def whole_ours(pipe: Any, prompts: list[str], sampling: Sampling, probes: int) -> None:
    """Δh and Δs from one generation of all images."""
    (batch,) = generate(pipe, prompts, range(len(prompts)), sampling, batch_size=len(prompts), keep=(-1,))
    watched = Watched(batch.trajectory, adapter_for(pipe).denoiser())
    CurvatureDifference(estimator=DiagonalEstimator(probes=probes)).map(watched)
    ScoreDifference().map(watched)


def memory(which: str) -> int:
    """Peak resident bytes of a process that generates and then maps eight images."""
    pipe, prompts, sampling = setup()
    (batch,) = generate(pipe, prompts, range(IMAGES), sampling, batch_size=IMAGES, keep=(-1,))
    watched = Watched(batch.trajectory, adapter_for(pipe).denoiser())
    if which == "released":
        released_maps(watched, RELEASED_PROBES)
    elif which == "ours":
        ours(watched, "finite", "orthogonal", 32)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def large() -> dict[str, float]:
    """One map on a UNet of SD 1.4's size."""
    say("SD 1.4's size")
    pipe, _ = sd14_size()
    view = adapter_for(pipe).denoiser()
    with watch(pipe, keep=(-1,)) as seen:
        pipe(prompt_embeds=torch.zeros(1, 77, 768), num_inference_steps=2, output_type="latent")
    watched = Watched(seen.trajectory, view)
    step = watched.trajectory.step()
    both = {"encoder_hidden_states": torch.zeros(2, 77, 768)}
    with torch.no_grad():
        evaluation = timed(lambda: view(torch.cat([step.cond.x] * 2), step.t, both), repeats=2)
    estimator = DiagonalEstimator(probes=LARGE_PROBES, rows=1)
    seconds = timed(lambda: CurvatureDifference(estimator=estimator).map(watched), repeats=1)
    return {
        "probes": LARGE_PROBES,
        "evaluations": seconds / evaluation,
        "seconds_per_evaluation": evaluation,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def timed(call: Callable[[], Any], repeats: int = REPEATS) -> float:
    """The shortest of some runs, in seconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def mean_error(estimate: Callable[[int], Tensor], exact: Tensor) -> float:
    """Root mean square error over the exact diagonal's root mean square, mean over three seeds."""
    errors = [((estimate(seed) - exact).square().mean() / exact.square().mean()).sqrt().item() for seed in (1, 2, 3)]
    return sum(errors) / len(errors)


def draw(curves: dict[str, dict[str, Any]], released: dict[str, float]) -> None:
    """Error against seconds, one line per engine and design."""
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for name, points in curves.items():
        style = "-" if "orthogonal" in name else "--"
        axes.plot(
            [p["seconds"] for p in points.values()],
            [p["error"] for p in points.values()],
            style,
            marker=".",
            label=name,
        )
    axes.plot(released["seconds"], released["error"], "k*", markersize=12, label="released procedure")
    axes.set(xscale="log", yscale="log", xlabel="seconds for eight images", ylabel="relative error of Δh")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)
    figure.savefig("docs/images/curvature_cost.png", dpi=150)


def say(what: str) -> None:
    """Tell a watching person what goes on."""
    if sys.stderr.isatty():
        sys.stderr.write(f"{what}\n")


if __name__ == "__main__":
    main()
