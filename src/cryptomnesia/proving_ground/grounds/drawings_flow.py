"""The drawings again, learned by rectified flow: a transformer in the place of the UNet, and the top rung alone."""

from typing import ClassVar

from cryptomnesia.proving_ground.flow import LatentFlow
from cryptomnesia.proving_ground.grounds.drawings import Drawings
from cryptomnesia.proving_ground.recipe import Phase, Recipe


class DrawingsFlow(Drawings):
    """Pictures, captions and autoencoder are those of the drawings; the autoencoder of a run of these can be given."""

    name = "drawings-flow"
    summary = "the drawings, learned by rectified flow as Stable Diffusion 3 is; the top rung alone"
    recipe = Recipe(
        (Phase(9_000, 32, 6e-4), Phase(5_000, 32, 3e-4, middle=0.75), Phase(1_500, 32, 1e-4, exchanged=0.7)),
        kept=(1_500, 4_000, 9_000),
    )
    networks = LatentFlow(channels=8, kl=2e-6, half=True, heads=3, layers=5, width=96)
    guidances = (5.0, 7.0)
    steps = 28
    solvers = ("FlowMatchHeunDiscreteScheduler",)
    ladder: ClassVar[dict[int, int]] = {1_024: 5}
    refined: ClassVar[bool] = False


GROUND = DrawingsFlow()
