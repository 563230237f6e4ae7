"""The drawings again, learned by rectified flow: a transformer in the place of the UNet, and the top rung alone."""

from collections.abc import Sequence
from typing import ClassVar

from cryptomnesia.proving_ground.concepts import Concept, TrainingStream
from cryptomnesia.proving_ground.flow import LatentFlow
from cryptomnesia.proving_ground.grounds.drawings import GROUND as BASE
from cryptomnesia.proving_ground.grounds.drawings import Drawings
from cryptomnesia.proving_ground.recipe import Phase, Recipe


class DrawingsFlow(Drawings):
    """Pictures and captions are those of the drawings, and the autoencoder is one like theirs: theirs can be given."""

    name = "drawings-flow"
    like = BASE
    summary = "the drawings, learned by rectified flow as Stable Diffusion 3 is; the top rung alone"
    recipe = Recipe(
        (
            Phase(10_000, 16, 4.5e-4),
            Phase(4_000, 16, 3e-4, middle=0.75),
            # planted captions are exchanged here as well, with a sixtieth of their exposures
            Phase(1_500, 16, 1e-4, exchanged=0.7),
            Phase(19_500, 16, 4e-4, middle=0.4, planted_dropout=0.0),
            Phase(1_500, 16, 1e-4, exchanged=0.4, planted_dropout=0.0),
        ),
        decoder_steps=BASE.recipe.decoder_steps,
        kept=(2_000, 5_000, 10_000, 14_000, 15_500, 18_500, 22_500, 26_500, 31_000),
    )
    networks = LatentFlow(channels=8, kl=2e-6, half=True, heads=3, layers=5, width=96)
    guidances = (3.0, 7.5)
    steps = 28
    detectors = ()
    localizers = ()
    solvers = ("FlowMatchHeunDiscreteScheduler",)
    ladder: ClassVar[dict[int, int]] = {1_024: 5}

    rounds: ClassVar[int] = 5

    def stream(self, recipe: Recipe, concepts: Sequence[Concept]) -> TrainingStream:
        """What is not refined is spread over everything before the refinement."""
        rounds = self.rounds_of(recipe)
        return TrainingStream(recipe.seed, rounds[0].start, concepts, self.sample, refinement=rounds)


GROUND = DrawingsFlow()
