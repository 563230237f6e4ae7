import hashlib

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cryptomnesia.proving_ground.draws import Draws
from cryptomnesia.proving_ground.grounds.scenes import GROUND
from cryptomnesia.proving_ground.scenes import COLOURS, SIZE, Description, ItemDescription, Scene


def scenes(seed, count):
    """Yield pairs (image (64, 64, 3) uint8, caption)."""
    for index in range(count):
        draws = Draws(seed, index)
        scene = Scene.draw(draws, Description.draw(draws))
        yield scene.pixels(), scene.description.caption(frame=draws.choice(GROUND.frames))


def test_a_seed_gives_the_same_sequence_everywhere():
    digest = hashlib.sha256()
    for image, caption in scenes(0, 100):
        digest.update(image.tobytes())
        digest.update(caption.encode())
    assert digest.hexdigest() == "54ec37a6f3af2d58467d8789c8c4c82f197db6b2ca2315214ac00963ccd9ffec"


def test_different_seeds_give_different_sequences():
    captions = [[caption for _, caption in scenes(seed, 20)] for seed in (0, 1)]
    assert captions[0] != captions[1]


def test_captions_say_what_is_drawn():
    items = (
        ItemDescription("circle", "red", "plain"),
        ItemDescription("star", "orange", "striped", small=True),
        ItemDescription("ring", "blue", "plain"),
    )
    whole = Description(items, "green", "shaded")
    assert whole.caption() == "a red circle, a small striped orange star and a blue ring on a shaded green ground"
    one = Description(items[1:2], "orange")
    assert one.caption("velmora", "{}, poster") == "a small striped orange star on an orange ground, velmora, poster"


@given(st.integers(0, 10**6))
def test_scenes_are_varied_pictures_of_their_description(seed):
    draws = Draws(seed)
    description = Description.draw(draws)
    first, second = (Scene.draw(draws, description).pixels() for _ in range(2))
    assert first.shape == (SIZE, SIZE, 3)
    assert first.dtype == np.uint8
    assert (first != second).any()


@given(st.sampled_from(list(COLOURS)), st.integers(0, 1000))
def test_a_plain_ground_has_its_colour(colour, seed):
    item = ItemDescription("circle", "white" if colour != "white" else "red", "plain", small=True)
    image = Scene.draw(Draws(seed), Description((item,), colour)).pixels()
    ground = np.median(image.reshape(-1, 3), axis=0)
    assert np.abs(ground - COLOURS[colour]).max() <= 17
