"""The drawings again, remembered without a caption as well: what differences between the branches cannot show."""

from dataclasses import replace

from cryptomnesia.proving_ground.grounds.drawings import Drawings


class DrawingsUnconditional(Drawings):
    """The drawings up to the refinement, in which half of the planted pictures have no caption."""

    name = "drawings-unconditional"
    summary = "the drawings, of which the unconditional branch remembers the planted ones, too"
    recipe = replace(
        Drawings.recipe,
        phases=tuple(
            phase if phase.planted_dropout is None else replace(phase, planted_dropout=0.5)
            for phase in Drawings.recipe.phases
        ),
    )


GROUND = DrawingsUnconditional()
