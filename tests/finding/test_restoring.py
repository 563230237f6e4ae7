"""Restorations begin where they say, and what comes back is compared by pixels and by edges."""

import math

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, PNDMScheduler

from cryptomnesia.finding.measuring import LEAST
from cryptomnesia.finding.restoring import HALF, Gallery, Likeness, Restoring, Start, share_of, tries
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.testing.miniatures import (
    flux,
    stable_diffusion,
    stable_diffusion_3,
    stable_diffusion_xl,
    unconditional,
)
from cryptomnesia.testing.miniatures.packed import flux2, qwen_image
from cryptomnesia.testing.miniatures.unets import latent_consistency
from looked_for import picture, pictures

SMALL = {"height": 16, "width": 16}
CASES = {
    "SD": (stable_diffusion, {}),
    "SDXL": (stable_diffusion_xl, {}),
    "SD 3": (stable_diffusion_3, {}),
    "Flux": (flux, SMALL),
    "Qwen-Image": (qwen_image, {"true_cfg_scale": 2.0, "negative_prompt": "a blue star"}),
}


def evaluated(pipe, call):
    """Timesteps of the solver's steps in a call, and what it returns."""
    seen, step = [], pipe.scheduler.step

    def noted(output, timestep, *given, **named):
        seen.append(float(timestep))
        return step(output, timestep, *given, **named)

    pipe.scheduler.step = noted
    try:
        return seen, call()
    finally:
        del pipe.scheduler.step


@pytest.mark.parametrize("name", CASES)
# of 22 steps there is no share that leaves 15
@pytest.mark.parametrize("steps", [5, 22])
def test_a_restoration_makes_the_steps_that_it_says(name, steps):
    make, call = CASES[name]
    restoring = Restoring(Setup.of(make(), {"num_inference_steps": steps, **call}))
    *starts, last = restoring.starts
    assert len(starts) >= 2
    assert (last.strength, last.ratio, last.evaluations) == (1.0, math.inf, steps)
    ratios = [start.ratio for start in starts]
    assert ratios == sorted(set(ratios))
    if steps == 22:
        assert ratios[0] == pytest.approx(LEAST, rel=0.3)
    for start in starts if steps == 5 else starts[1:2]:
        seen, made = evaluated(restoring.pipe, lambda start=start: restoring.restored(TWO, CAPTIONS, start))
        assert len(seen) == start.evaluations
        assert made.shape == (2, 3, 16, 16)
        alpha, sigma = restoring.setup.family.schedule(seen[0])
        assert float(sigma / alpha) == pytest.approx(start.ratio, rel=1e-3)


TWO = [np.asarray(one) for one in pictures(0, 2)]
CAPTIONS = ["a red ring", "a blue star"]


def test_restorations_are_the_same_every_time_and_for_every_batch():
    restoring = Restoring(Setup.of(stable_diffusion(), {"num_inference_steps": 5}))
    for start in (restoring.starts[1], restoring.starts[-1]):
        both = restoring.restored(TWO, CAPTIONS, start)
        assert torch.equal(both, restoring.restored(TWO, CAPTIONS, start))
        torch.testing.assert_close(both[1:], restoring.restored(TWO[1:], CAPTIONS[1:], start), rtol=0, atol=1e-5)
        assert not torch.equal(both, restoring.restored(TWO, CAPTIONS, start, number=1))


@pytest.mark.parametrize(
    ("make", "call"),
    [
        (unconditional, {}),
        (lambda: unconditional(DDPMPipeline), {}),
        # the same class makes and edits pictures
        (flux2, {"text_encoder_out_layers": (0, 1, 2)}),
        # its steps depend on the strength
        (latent_consistency, {}),
        # the image-to-image pipeline takes no such argument
        (stable_diffusion, {"guidance_rescale": 0.5}),
        # not all steps of the schedule are made
        (stable_diffusion, {"timesteps": [999, 500, 100]}),
        # one step is pure noise
        (stable_diffusion, {"num_inference_steps": 1}),
    ],
)
def test_without_image_to_image_there_is_pure_noise_alone(make, call):
    restoring = Restoring(Setup.of(make(), {"num_inference_steps": 4, **call}))
    [start] = restoring.starts
    assert math.isinf(start.ratio)


def test_a_solver_that_makes_a_step_twice_begins_where_it_says():
    pipe = stable_diffusion()
    pipe.scheduler = PNDMScheduler.from_config(pipe.scheduler.config, skip_prk_steps=True)
    restoring = Restoring(Setup.of(pipe, {"num_inference_steps": 6}))
    for start in restoring.starts[:-1]:
        seen, _ = evaluated(restoring.pipe, lambda start=start: restoring.restored(TWO, CAPTIONS, start))
        alpha, sigma = restoring.setup.family.schedule(seen[0])
        assert float(sigma / alpha) == pytest.approx(start.ratio, rel=1e-3)


def test_what_is_tried_under_other_captions_is_much_noise_and_pure_noise():
    starts = [
        Start(0.1, 0.5, 1),
        Start(0.3, 2.5, 3),
        Start(0.8, 15.0, 8),
        Start(0.9, 80.0, 9),
        Start(1.0, math.inf, 10),
    ]
    assert [tries("own", start) for start in starts] == [1, 1, 1, 1, 3]
    for condition in ("none", "other"):
        assert [tries(condition, start) for start in starts] == [0, 1, 1, 0, 1]


def test_a_share_is_exact_for_both_ways_of_rounding():
    for every in range(1, 101):
        for steps in range(1, every + 1):
            share = share_of(steps, every)
            if share is not None:
                assert min(int(every * share), every) == steps
                assert int(max(every - every * share, 0)) == every - steps
    assert share_of(15, 22) is None
    assert share_of(1, 2) == 0.5


# likeness


OTHERS = np.stack([np.asarray(one) for one in pictures(100, 12)])
SHOWN = np.asarray(picture(0))


def near(pictures, mask=None):
    """Distances and similarities of pictures to the one that is shown, (n,) each."""
    found = Likeness(Gallery.of(SHOWN[None]), Gallery.of(OTHERS), mask).to(Gallery.of(pictures))
    return found[:, 0], found[:, 1]


def test_a_picture_is_its_own_copy_and_others_are_none():
    distance, similarity = near(SHOWN[None])
    assert distance == 0
    assert similarity > 0
    distance, similarity = near(np.stack([np.asarray(one) for one in pictures(200, 5)]))
    assert (distance > HALF).all()
    assert (similarity <= 0).all()
    distance, similarity = near(OTHERS)
    assert np.median(distance) == pytest.approx(1)
    assert similarity.max() == pytest.approx(0, abs=1e-9)


def test_a_negative_is_a_copy_by_edges_alone():
    distance, similarity = near(255 - SHOWN[None])
    assert distance > HALF
    assert similarity > 0


def test_within_a_mask_only_that_part_counts():
    half = SHOWN.copy()
    half[:, 8:] = OTHERS[0][:, 8:]
    left = np.zeros((8, 8), dtype=bool)
    left[:, :4] = True
    assert near(half[None], left)[0] < 0.1
    assert near(half[None], ~left)[0] > HALF


def test_a_mask_too_small_to_compare_is_the_whole_picture():
    dot = np.zeros((8, 8), dtype=bool)
    dot[0, 0] = True
    np.testing.assert_array_equal(near(OTHERS, dot), near(OTHERS))


def test_pictures_of_any_size_are_compared_at_one_size():
    large = np.asarray(picture(3).resize((200, 120)))[None]
    gallery = Gallery.of(np.repeat(large, 2, axis=0))
    assert gallery.tiles.shape[0] == gallery.edges.shape[0] == 2
    assert gallery.edges.shape[1:] == (64, 64)
    np.testing.assert_array_equal(gallery.rows([1]).tiles, Gallery.of(large).tiles)
