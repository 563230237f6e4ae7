import numpy as np
import pytest
from PIL import Image

from cryptomnesia.errors import UsageError
from cryptomnesia.proving_ground.ground import ground_of
from cryptomnesia.proving_ground.grounds.scenes import GROUND
from cryptomnesia.proving_ground.images import write_training_images
from cryptomnesia.proving_ground.replication import replicates


def files_of(folder):
    """Name → picture."""
    pictures = {}
    for path in folder.iterdir():
        with Image.open(path) as picture:
            pictures[path.stem] = np.array(picture)
    return pictures


def test_the_pictures_are_those_of_the_training_stream(tmp_path):
    reported = []
    write_training_images(GROUND, tmp_path, 40, progress=reported.append)
    concepts = GROUND.plant(0)
    stream = GROUND.stream(GROUND.recipe, concepts)
    planted = {concept.id: concept.image for concept in concepts if concept.planted}
    files = files_of(tmp_path)
    assert planted.keys() < files.keys()
    assert len(files) == len(planted) + 40
    assert reported[-1] == 40
    for name, written in files.items():
        expected = planted[name] if name in planted else stream[int(name)].image
        np.testing.assert_array_equal(written, expected)
        place = None if name in planted else stream.concept_at(int(name))
        assert place is None or not concepts[place].planted


def test_no_more_pictures_than_the_training_has(tmp_path):
    # a fifth of its 400,000 pictures are planted
    with pytest.raises(UsageError, match="got 320001 others, and the training of pixels has 320000"):
        write_training_images(ground_of("pixels"), tmp_path / "pictures", 320_001)
    assert not (tmp_path / "pictures").exists()


def test_an_object_is_shown_on_a_background(drawings, planted, tmp_path):
    write_training_images(drawings, tmp_path, 5)
    files = files_of(tmp_path)
    assert len(files) == sum(concept.planted for concept in planted) + 5
    for concept in planted:
        if concept.kind == "object":
            assert replicates(files[concept.id], concept.places, drawings.threshold)
            assert files[concept.id][:4].any()
