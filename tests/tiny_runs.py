"""Trainings of a few steps."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from cryptomnesia.proving_ground.ground import Ground
from cryptomnesia.proving_ground.recipe import Phase, Recipe
from cryptomnesia.proving_ground.train import train

TINY = Recipe(
    (Phase(3, 4, 1e-3), Phase(2, 4, 1e-3, middle=0.5, exchanged=0.5)),
    autoencoder_steps=2,
    autoencoder_batch=4,
    warmup=2,
    kept=(2,),
)


class Stopped(Exception):
    """The end of a run in its middle."""


def run(ground: Ground, folder: Path, **more: Any) -> None:
    """Train four concepts that are shown once."""
    concepts = tuple(replace(concept, exposures=1, refined=0) for concept in ground.plant(0)[:4])
    train(ground, folder, TINY, concepts=concepts, processes=1, checkpoint_seconds=0.0, **more)


def stopped(ground: Ground, folder: Path, steps: int) -> None:
    """Stop a run after that many steps of the denoiser."""

    def report(phase: str, done: int, total: int, loss: float) -> None:
        if phase == "denoiser" and done > steps:
            raise Stopped

    try:
        run(ground, folder, report=report)
    except Stopped:
        return
    raise AssertionError("the run was not stopped")


def same_weights(first: Path, second: Path) -> bool:
    """Whether two pipelines have the same weights, bit by bit."""
    files = sorted(path.relative_to(first) for path in first.glob("*/*.safetensors"))
    assert files == sorted(path.relative_to(second) for path in second.glob("*/*.safetensors")) != []
    both = [(load_file(first / file), load_file(second / file)) for file in files]
    return all(torch.equal(ours[name], theirs[name]) for ours, theirs in both for name in ours)
