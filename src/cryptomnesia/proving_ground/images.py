"""A ground's training images as files, to match generations against."""

from collections.abc import Callable
from pathlib import Path

from cryptomnesia.errors import UsageError
from cryptomnesia.files import write_whole
from cryptomnesia.images import png
from cryptomnesia.proving_ground.draws import Draws
from cryptomnesia.proving_ground.ground import Ground
from cryptomnesia.proving_ground.recipe import Recipe


def write_training_images(
    ground: Ground,
    folder: Path,
    others: int,
    *,
    recipe: Recipe | None = None,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write the picture of every planted concept, and the first `others` samples in which nothing is planted.

    Hard negatives are among these samples as often as they were trained on. Of a model that was trained further, they
    are samples of its base, and the planted pictures are those of both, each of them once. Files are named by concept,
    or by place in the training stream, and replace files of the same name, which may be another ground's.

    Args:
        ground: the proving ground.
        folder: made if it is not there.
        others: number of samples in which nothing is planted.
        recipe: of the training, the ground's by default.
        progress: called with the number of these samples that are done.

    Raises:
        UsageError: if the training has not so many.
    """
    recipe = recipe or ground.recipe
    concepts = ground.plant(recipe.seed)
    written: set[tuple[str, ...]] = set()
    if ground.origin is not None:
        # what the model saw besides is what its base saw
        write_training_images(ground.origin, folder, others, progress=progress)
        others = 0
        written = {concept.captions for concept in ground.origin.plant(ground.origin.recipe.seed)}
    stream = ground.stream(recipe, concepts)
    if others > (most := recipe.samples - sum(map(stream.planted_at, range(recipe.samples)))):
        raise UsageError(f"got {others} others, and the training of {ground.name} has {most}; give at most that many")
    folder.mkdir(parents=True, exist_ok=True)
    for concept in concepts:
        if concept.planted and concept.exposures and concept.captions not in written:
            # an object alone is no picture
            shown = concept.image if len(concept.places) == 1 else concept.exposure(Draws(0, 7))
            write_whole(folder / f"{concept.id}.png", png(shown))
    index = done = 0
    while done < others:
        if not stream.planted_at(index):
            write_whole(folder / f"{index:07}.png", png(stream[index].image))
            done += 1
            if progress is not None:
                progress(done)
        index += 1
