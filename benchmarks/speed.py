"""What a guard, a map and the loading of a model cost: docs/results/speed.json.

    python benchmarks/speed.py > docs/results/speed.json

`guard`: guarded against unguarded calls (`overhead.py`). `curvature`: the estimator against the released procedure of
the paper, and `docs/images/curvature_cost.png` (`curvature_speed.py`). What is compared alternates in either.

`loading`: `PROCESSES` processes that load the same pipeline from disk at the same time, as the workers of an audit do.
Its UNet is of SD 1.4's size with random weights, `weights` bytes in float32. `seconds`: until the pipeline is there,
without imports, medians over processes and `ROUNDS` rounds. `private`: bytes that a process has for itself after every
weight was read, beyond those before loading; `shared`: bytes of the file that the processes have in common, which are
in memory once.
"""

import json
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import curvature_speed
import overhead
from common import CACHE, Start, print_json, progress

from cryptomnesia import load_pipeline

PROCESSES = 2
ROUNDS = 3


def main() -> None:
    """Measure and print JSON."""
    pipe = load_pipeline("bundled", device="cpu")
    with progress() as start:
        figures = {
            "loading": loading(start),
            "guard": overhead.measure(pipe, start),
            "curvature": curvature_speed.measure(pipe, start),
        }
    print_json(figures, scheduler=type(pipe.scheduler).__name__)


def loading(start: Start) -> dict[str, Any]:
    """Several processes that load one model."""
    folder = CACHE.absolute() / "speed-large"
    if not (folder / "model_index.json").exists():
        large(folder)
    tell = start("loading", ROUNDS)
    found: list[dict[str, float]] = []
    for number in range(ROUNDS):
        children = [
            subprocess.Popen(
                [sys.executable, __file__, "load", str(folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(PROCESSES)
        ]
        # memory is shared only as long as the others hold it, too: all load, then all look, then all end
        for question in ("load", "look", "end"):
            for child in children:
                assert child.stdin is not None
                child.stdin.write(f"{question}\n")
                child.stdin.flush()
            answers = [child.stdout.readline() for child in children if child.stdout is not None]
            if question == "look":
                found += [json.loads(answer) for answer in answers]
        for child in children:
            child.wait()
        tell(number + 1)
    figures = {key: statistics.median(one[key] for one in found) for key in ("seconds", "private", "shared")}
    weights = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
    return {**figures, "weights": weights, "processes": PROCESSES, "rounds": ROUNDS}


def large(folder: Path) -> None:
    """Save a pipeline whose UNet is of SD 1.4's size."""
    import torch
    from diffusers import UNet2DConditionModel

    from cryptomnesia.testing.miniatures import stable_diffusion

    pipe = stable_diffusion()
    torch.manual_seed(0)
    size = pipe.unet.config.cross_attention_dim
    pipe.register_modules(unet=UNet2DConditionModel(cross_attention_dim=size, attention_head_dim=8, sample_size=64))
    pipe.save_pretrained(folder)


def child(folder: str) -> None:
    """One of the processes: it loads, reads all weights and says what that took, each when it is asked to."""
    import diffusers  # noqa: F401
    import transformers  # noqa: F401

    sys.stdin.readline()
    before, began = memory(), time.perf_counter()
    pipe = load_pipeline(folder, device="cpu")
    seconds = time.perf_counter() - began
    for weights in pipe.unet.parameters():
        weights.detach().sum()
    print("loaded", flush=True)
    sys.stdin.readline()
    after = memory()
    print(json.dumps({"seconds": seconds, **{key: after[key] - before[key] for key in after}}), flush=True)
    sys.stdin.readline()
    print("ended", flush=True)


def memory() -> dict[str, int]:
    """The bytes that this process has for itself, and those of files that it shares with others."""
    text = Path("/proc/self/smaps_rollup").read_text()
    kilobytes = {name: int(size) for name, size in re.findall(r"^(\w+): +(\d+) kB$", text, flags=re.MULTILINE)}
    return {
        "private": 1024 * (kilobytes["Private_Dirty"] + kilobytes["Private_Clean"]),
        "shared": 1024 * kilobytes["Shared_Clean"],
    }


if __name__ == "__main__":
    if sys.argv[1:2] == ["load"]:
        child(sys.argv[2])
    else:
        main()
