"""Checkpoints of a training whose predictions are known in closed form, and a work that measures them."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from cryptomnesia.errors import UsageError
from cryptomnesia.finding.pictures import read_pictures
from cryptomnesia.finetuning import work
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.testing.miniatures import KeywordEncoder, oracle_pipeline
from cryptomnesia.testing.oracles import FiniteSet
from looked_for import CALL, autoencoder, latents, picture, pictures

CAPTIONS = ["a ring", "a ball", "a cup", "a hat"]
TRAINED = [picture(seed) for seed in range(4)]


def pipeline(held=None):
    """A pipeline that makes one of 32 pictures; with "ring" in its caption the picture that it holds, if it does."""
    others = torch.cat([latents(one) for one in pictures(1_000, 32)])
    sets = (others, others if held is None else latents(held))
    pipe = oracle_pipeline(FiniteSet(sets), channels=4, side=8)
    pipe.register_modules(vae=autoencoder(), text_encoder=KeywordEncoder("ring"))
    return pipe


@dataclass(frozen=True)
class Held:
    """A checkpoint that holds a picture, or none."""

    name: str
    step: int
    held: int | None
    scalable: bool = False

    @cached_property
    def digest(self):
        return f"{self.name} {self.step} {self.held}"

    def load(self, model, *, scale=1.0, **loading):
        return pipeline(None if self.held is None or scale < 0.5 else TRAINED[self.held])


class Broken(Held):
    """A checkpoint that cannot be loaded."""

    def load(self, model, *, scale=1.0, **loading):
        raise UsageError("it is gone")


class Diverged(Held):
    """A checkpoint whose predictions are no numbers."""

    def load(self, model, *, scale=1.0, **loading):
        others = torch.cat([latents(one) for one in pictures(1_000, 2)])
        pipe = oracle_pipeline(FiniteSet((others * torch.nan, others)), channels=4, side=8)
        pipe.register_modules(vae=autoencoder(), text_encoder=KeywordEncoder("ring"))
        return pipe


@dataclass
class Make:
    """Makes the work in any process."""

    folder: Path
    checkpoints: tuple
    more: dict

    def __call__(self):
        # the oracle has no weights that could be compared
        work.check_same_base = lambda *_: None
        return work.Finetuning(
            base=Setup.of(pipeline(), CALL),
            model="oracle",
            checkpoints=self.checkpoints,
            folder=self.folder,
            **{"pictures": read_pictures(TRAINED, CAPTIONS), **self.more},
        )


NONE, COPIES = Held("checkpoint-100", 100, None), Held("checkpoint-200", 200, 0)
