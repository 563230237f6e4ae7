"""What runs on a GPU, and how fast: docs/results/gpu.json.

    python benchmarks/gpu.py > docs/results/gpu.json

`card`: name, driver, memory and versions. Every other figure is a list of rows, and each row says which weights it is
for (`dtype`). `value` is a median over rounds, `low` and `high` are the least and the most; `peak_gib` is the most
memory that PyTorch held, weights included. A row that failed, or that the time did not reach, has `error` instead.

`overhead`: (observed − plain)/plain of calls of `STEPS` steps with a random UNet of SD 1.4's size, which alternate; a
guard that observes, or a watch alone. `seconds` of a plain call; `share`, of a guard: what the guard's code took,
waiting for the GPU included, divided by the seconds of the call.
`detect`: images per second of the verb on the bundled model, with its calibration, in batches of `batch`.
`curvature`: seconds per image of Δh with the estimator's usual probes, on `batch` images of the bundled model.

Rows are measured in order of importance, until `--seconds` are over; Ctrl-C ends a row. Compiling takes most of the
time. So `--prepare DTYPE` compiles and measures nothing: PyTorch keeps the code on disk, and the measurement finds it.
`--device cpu --small` tries the program out: all sizes are miniature, and the figures mean nothing.
"""

import argparse
import gc
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from common import print_json, progress
from curvature_speed import STEP, difference
from curvature_speed import timed as seconds_of
from overhead import EMBEDS, sd14_size, timed, where

from cryptomnesia import DiagonalEstimator, Guard, detect, load_pipeline, watch
from cryptomnesia.localizers import Watched
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.proving_ground import BUNDLE
from cryptomnesia.proving_ground.manifest import Manifest
from cryptomnesia.tracing.generation import generate

DTYPES = ("float16", "bfloat16", "float32")
PACKAGES = ("torch", "diffusers", "transformers", "accelerate")


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        steps: of a call at SD 1.4's size.
        rounds: pairs of calls, or repetitions.
        profiled: calls in which the guard's own time is taken.
        batches: batch size → images of one repetition of `detect`.
        mapped: images of a curvature map.
        unet: what of SD 1.4's UNet differs.
    """

    steps: int
    rounds: int
    profiled: int
    batches: dict[int, int]
    mapped: int
    unet: dict[str, Any]


FULL = Sizes(50, 3, 2, {1: 2, 16: 16, 64: 64}, 8, {})
SMALL = Sizes(3, 2, 1, {1: 1, 2: 2}, 2, {"block_out_channels": (32, 32, 32, 32), "sample_size": 8})


class Observing:
    """A watch in the place of a guard that is timed."""

    verdicts = ()

    def __init__(self, pipe: Any) -> None:
        """Watch `pipe` in every `with` block."""
        self.pipe = pipe

    def __enter__(self) -> "Observing":
        """Begin a watch."""
        self.watching = watch(self.pipe)
        self.watching.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        """End it."""
        self.watching.__exit__(*error)


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description="Measure on a GPU.")
    parser.add_argument("--device", default="cuda", help="device of the networks")
    parser.add_argument("--small", action="store_true", help="miniature sizes, to try the program out")
    parser.add_argument("--seconds", type=float, default=95, help="time after which no row is begun")
    parser.add_argument("--prepare", choices=DTYPES, help="only compile the UNet with these weights")
    given = parser.parse_args()
    sizes, device = SMALL if given.small else FULL, given.device
    if given.prepare:
        call, guarding = large(sizes, device, given.prepare, steps=2, compiled=True)
        call()
        with guarding:
            call()
        return
    began = time.perf_counter()
    overheads = [(what, dtype, compiled) for what, compiled in (("guard", False), ("guard", True), ("watch", False))
                 for dtype in DTYPES]  # fmt: skip
    uncompiled, later = overheads[:3], overheads[3:]
    figures: dict[str, Any] = {"card": card(device), "sizes": asdict(sizes)}
    figures |= {"overhead": [], "detect": [], "curvature": []}
    with progress() as start:
        tell = start("rows", len(overheads) + len(sizes.batches) + len(DTYPES))

        def measure(kind: str, function: Callable[..., dict[str, Any]], **row: Any) -> None:
            late = time.perf_counter() - began > given.seconds
            found = {"error": f"the {given.seconds:g} seconds were over"} if late else row_of(function, device, **row)
            figures[kind].append({**row, **found})
            tell(sum(len(figures[name]) for name in ("overhead", "detect", "curvature")))
            print(kind, figures[kind][-1], f"{time.perf_counter() - began:.1f} s", file=sys.stderr)

        def overhead_of(rows: list[tuple[str, str, bool]]) -> None:
            for what, dtype, compiled in rows:
                measure("overhead", partial(overhead, sizes, device), what=what, dtype=dtype, compiled=compiled)

        overhead_of(uncompiled)
        for batch in sizes.batches:
            measure("detect", partial(detecting, sizes, device), batch=batch, dtype="float32")
        for dtype in DTYPES:
            measure("curvature", partial(curvature, sizes, device), batch=sizes.mapped, dtype=dtype)
        overhead_of(later)
    print_json({**figures, "seconds": time.perf_counter() - began})


def card(device: str) -> dict[str, Any]:
    """What measures: the GPU, its driver, and the versions of what computes on it."""
    versions = {"Python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
    if device == "cpu":
        return {"name": f"CPU ({platform.machine()})", "driver": "none", "memory_gib": None, "versions": versions}
    index = torch.cuda.current_device()
    try:
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", f"--id={index}"]
        driver = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        driver = f"unknown ({type(error).__name__})"
    return {
        "name": torch.cuda.get_device_name(index),
        "driver": driver,
        "memory_gib": torch.cuda.get_device_properties(index).total_memory / 2**30,
        "versions": {**versions, "CUDA": torch.version.cuda, "cuDNN": str(torch.backends.cudnn.version())},
    }


def row_of(function: Callable[..., dict[str, Any]], device: str, **row: Any) -> dict[str, Any]:
    """The figures of a row with the memory that it took, or why it has none: the other rows are measured all the same.

    The most memory is PyTorch's own count, None on a CPU.
    """
    gc.collect()
    if device != "cpu":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        found = function(**row)
    except (Exception, KeyboardInterrupt) as error:
        return {"error": " ".join(f"{type(error).__name__}: {error}".split())[:500].replace("|", "/")}
    finally:
        torch.compiler.reset()
    return {**found, "peak_gib": None if device == "cpu" else torch.cuda.max_memory_allocated() / 2**30}


def large(sizes: Sizes, device: str, dtype: str, *, steps: int, compiled: bool) -> tuple[Callable[[], None], Guard]:
    """A call of a pipeline at SD 1.4's size that ends when the GPU has, and a guard of the pipeline."""
    pipe, calibration = sd14_size(steps, device, getattr(torch, dtype), **sizes.unet)
    if compiled:
        pipe.unet = torch.compile(pipe.unet)
    embeds = EMBEDS.to(device, pipe.dtype)

    def call() -> None:
        pipe(
            prompt_embeds=embeds,
            negative_prompt_embeds=embeds,
            num_inference_steps=steps,
            generator=torch.Generator().manual_seed(0),
            output_type="latent",
        )
        finish(device)

    return call, Guard(pipe, calibration)


def finish(device: str) -> None:
    """Wait until the GPU has done everything that it was given."""
    if device != "cpu":
        torch.cuda.synchronize()


def overhead(sizes: Sizes, device: str, *, what: str, dtype: str, compiled: bool) -> dict[str, Any]:
    """Observed against plain calls."""
    call, guarding = large(sizes, device, dtype, steps=sizes.steps, compiled=compiled)
    observing: Any = guarding if what == "guard" else Observing(guarding.pipe)
    with observing:  # also a compiled network is compiled only once
        call()
    plain, extra = timed(call, observing, sizes.rounds, silent, lambda verdict: not verdict.flagged)
    found = {**spread(extra / plain), "seconds": spread(plain), "rounds": sizes.rounds}
    if what == "guard":
        found |= {"where": (parts := where(call, guarding, sizes.profiled)), "share": parts["share"]}
    return found


def detecting(sizes: Sizes, device: str, *, batch: int, dtype: str) -> dict[str, Any]:
    """Images per second of `detect` on the bundled model."""
    pipe = bundled(device, dtype)
    count = sizes.batches[batch]
    prompts = Manifest.load(BUNDLE).control_captions("evaluation", count)

    def once() -> None:
        assert len(list(detect(pipe, prompts, batch_size=batch))) == count
        finish(device)

    once()
    return {**spread(count / np.array([seconds_of(once) for _ in range(sizes.rounds)])), "images": count}


def curvature(sizes: Sizes, device: str, *, batch: int, dtype: str) -> dict[str, Any]:
    """Seconds per image of Δh on the bundled model."""
    manifest = Manifest.load(BUNDLE)
    setup = Setup.of(bundled(device, dtype), {"num_inference_steps": manifest.steps})
    prompts = manifest.control_captions("evaluation", batch)
    (made,) = generate(setup, prompts, range(batch), batch_size=batch, keep=(STEP,))
    watched = Watched(made.trajectory, setup.family.denoiser(), seeds=made.seeds)

    def once() -> None:
        difference(watched, DiagonalEstimator())
        finish(device)

    once()
    return {**spread(np.array([seconds_of(once) for _ in range(sizes.rounds)]) / batch), "images": batch}


def bundled(device: str, dtype: str) -> Any:
    """The bundled model, silent."""
    pipe = load_pipeline("bundled", device=device, dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def spread(values: np.ndarray) -> dict[str, float]:
    """The median with the least and the most."""
    return {"value": float(np.median(values)), "low": float(values.min()), "high": float(values.max())}


def silent(_: float) -> None:
    """Say nothing of the rounds of a row: rows are counted."""


if __name__ == "__main__":
    main()
