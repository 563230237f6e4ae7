import numpy as np
import pytest

from cryptomnesia.finding.restoring import SIDE, Gallery
from cryptomnesia.finetuning.comparing import PARTS, distances, originals, similarities

RNG = np.random.default_rng(0)


def picture(seed):
    """A picture of smooth colours."""
    coarse = np.random.default_rng(seed).uniform(0, 255, (9, 9, 3))
    rows = np.linspace(0, 7.999, SIDE)
    low, share = rows.astype(int), (rows % 1)[:, None, None]
    tall = coarse[low] * (1 - share) + coarse[low + 1] * share
    share = share.transpose(1, 0, 2)
    return (tall[:, low] * (1 - share) + tall[:, low + 1] * share).astype(np.uint8)


def several(first, count):
    return np.stack([picture(seed) for seed in range(first, first + count)])


TRAINED, OTHERS = several(0, 4), several(100, 30)
CAPTIONS = ["a ring", "a ball", "a cup", "a hat"]


def compared(made=OTHERS, under=("a tree",) * 30):
    nothing = Gallery.of(TRAINED).rows([])
    return originals(Gallery.of(TRAINED), CAPTIONS, nothing, Gallery.of(made), list(under))


def nearness(image, row=0, **changed):
    return compared(**changed)[row].nearness(Gallery.of(image[None]))


def test_the_picture_itself_is_a_copy_as_a_whole_by_pixels_and_another_picture_is_none():
    same, other = nearness(TRAINED[0]), nearness(picture(500))
    assert same.scores[0, 0] > 1
    assert same.by == ["pixels"]
    assert (other.scores < 0).all()


def test_a_recoloured_picture_is_a_copy_by_its_edges():
    inverted = nearness(255 - TRAINED[0])
    assert inverted.scores[0, 0] > 0
    assert inverted.by == ["edges"]


@pytest.mark.parametrize(("rows", "columns", "part"), [(slice(0, 32), slice(0, 32), (0, 0, 0.5, 0.5))])
def test_a_part_that_is_copied_is_named(rows, columns, part):
    image = picture(500)
    image[rows, columns] = TRAINED[0][rows, columns]
    found = nearness(image)
    assert found.scores[0, 1] > 0 > found.scores[0, 0]
    assert found.quarters == [part]


def test_the_score_by_pixels_is_the_logarithm_of_the_largest_distance_of_a_copy_over_the_distance():
    (original, *_) = compared()
    image = np.clip(TRAINED[0].astype(int) + 10, 0, 255).astype(np.uint8)
    references = Gallery.joined([Gallery.of(TRAINED[1:]), Gallery.of(OTHERS)])
    far = np.array([distances(original.picture, references.rows([row]))[0, 0] for row in range(33)])
    near = min(np.median(far) / 2, np.median(far[:3]) / 2, far.min())
    expected = np.log(near / distances(original.picture, Gallery.of(image[None]))[0, 0])
    assert original.nearness(Gallery.of(image[None])).scores[0, 0] == pytest.approx(expected, rel=1e-6)


def test_what_the_caption_alone_makes_of_the_base_is_no_copy():
    # the caption fixes so much that the base comes as near to the picture as the image does
    near = np.clip(TRAINED[0].astype(int) + RNG.integers(-60, 60, (SIDE, SIDE, 3)), 0, 255).astype(np.uint8)
    made, under = np.concatenate([OTHERS, near[None]]), ["a tree"] * 30 + ["a ring"]
    image = np.clip(TRAINED[0].astype(int) + RNG.integers(-60, 60, (SIDE, SIDE, 3)), 0, 255).astype(np.uint8)
    assert nearness(image).scores[0, 0] > 0
    assert nearness(image, made=made, under=under).scores[0, 0] < 0


def test_a_copy_of_the_picture_in_the_training_set_is_no_reference():
    twice = np.concatenate([TRAINED, TRAINED[:1]])
    captions, nothing = [*CAPTIONS, "a ring again"], Gallery.of(TRAINED).rows([])
    found = originals(Gallery.of(twice), captions, nothing, Gallery.of(OTHERS), ["a tree"] * 30)
    assert found[0].nearness(Gallery.of(TRAINED[:1])).scores[0, 0] > 1


def test_a_quarter_of_one_colour_makes_no_copy():
    plain = picture(7)
    plain[:32, :32] = (200, 40, 40)
    image = picture(500)
    image[:32, :32] = (200, 40, 40)
    found = originals(Gallery.of(plain[None]), ["a wall"], Gallery.of(TRAINED), Gallery.of(OTHERS), ["a tree"] * 30)
    assert found[0].nearness(Gallery.of(image[None])).scores[0, 1] < 0
    black = np.zeros((1, SIDE, SIDE, 3), dtype=np.uint8)
    nothing = originals(Gallery.of(black), ["a wall"], Gallery.of(TRAINED), Gallery.of(OTHERS), ["a tree"] * 30)
    assert nothing[0].nearness(Gallery.of(image[None])).scores[0, 1] == -np.inf


def test_nearness_does_not_depend_on_the_other_images():
    (original, *_) = compared()
    images = Gallery.of(np.concatenate([TRAINED, OTHERS[:5]]))
    together = original.nearness(images).scores
    alone = [original.nearness(images.rows([row])).scores[0] for row in range(9)]
    np.testing.assert_allclose(together, alone, rtol=1e-5)


def test_the_parts_are_the_whole_and_nine_overlapping_quarters():
    assert len(PARTS) == 10
    found = similarities(Gallery.of(TRAINED[:1]), Gallery.of(TRAINED[:1]))
    np.testing.assert_allclose(found, 1.0)
