import numpy as np
from PIL import Image

from cryptomnesia.proving_ground.images import write_training_images
from cryptomnesia.proving_ground.planted import TrainingStream, plant
from cryptomnesia.proving_ground.train import Recipe


def test_the_pictures_are_those_of_the_training_stream(tmp_path):
    reported = []
    write_training_images(tmp_path, 40, progress=reported.append)
    concepts, recipe = plant(0), Recipe()
    refinement = recipe.refinement_steps * recipe.refinement_batch
    stream = TrainingStream(0, recipe.steps * recipe.batch, refinement=refinement)
    planted = {concept.id: concept.image for concept in concepts if concept.planted}
    files = {path.stem: path for path in tmp_path.iterdir()}
    assert planted.keys() < files.keys()
    assert len(files) == len(planted) + 40
    assert reported[-1] == 40
    for name, path in files.items():
        with Image.open(path) as picture:
            written = np.array(picture)
        expected = planted[name] if name in planted else stream[int(name)].image
        np.testing.assert_array_equal(written, expected)
        place = None if name in planted else stream.concept_at(int(name))
        assert place is None or not concepts[place].planted
