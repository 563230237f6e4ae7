"""P-values and masks on errors that are drawn, about which everything is known."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from cryptomnesia import UsageError
from cryptomnesia.finding.concluding import Judgement, Look
from cryptomnesia.finding.judging import (
    PIXEL_RATE,
    Compared,
    Judged,
    Measured,
    check_controls,
    first_p_value,
    freed,
    pooled,
    restored_scores,
    standardized,
)
from cryptomnesia.finding.restoring import Start

CONDITIONS = ["own", "none"]


def drawn(rng, count=20, side=6, levels=2, spread=1.0):
    """Errors and details of pictures of which none is known: the more detail, the higher the error, caption or not."""
    detail = np.exp(spread * rng.normal(size=(count, 1, 1)) + 0.3 * rng.normal(size=(count, side, side)))
    shared = detail[:, None] ** 0.8 * np.exp(0.3 * rng.normal(size=(count, levels, side, side)))
    errors = {name: shared * np.exp(0.1 * rng.normal(size=shared.shape)) for name in (*CONDITIONS, "other")}
    return Measured(errors, detail)


def changed(measured, name, factor):
    """With the errors under a condition of the first picture times a factor."""
    errors = {key: values.copy() for key, values in measured.errors.items()}
    errors[name][0] *= factor
    return Measured(errors, measured.detail)


def test_p_values_of_pictures_that_are_like_their_controls_are_valid():
    """P(p ≤ a) ≤ a; of 1,000 draws four standard errors are allowed."""
    rng = np.random.default_rng(0)
    found = np.array([Compared(drawn(rng)).p_value(CONDITIONS) for _ in range(1_000)])
    for rate in (0.05, 0.1, 0.25, 0.5, 0.75):
        share = (found <= rate + 1e-9).mean()
        assert share <= rate + 4 * math.sqrt(rate * (1 - rate) / len(found)), rate
    # and they are not all 1
    assert 0.4 <= found.mean() <= 0.65


def test_p_values_of_masks_are_valid():
    rng = np.random.default_rng(14)
    found = np.array([Judged.of(Compared(drawn(rng)), CONDITIONS, 0.05, range(19), []).part_p for _ in range(500)])
    found = found[np.isfinite(found)]
    assert len(found) > 400
    for rate in (0.05, 0.1, 0.25, 0.5, 0.75):
        share = (found <= rate + 1e-9).mean()
        assert share <= rate + 4 * math.sqrt(rate * (1 - rate) / len(found)), rate
    assert 0.4 <= found.mean() <= 0.65


def test_the_order_of_the_controls_does_not_matter():
    rng = np.random.default_rng(1)
    measured = drawn(rng, count=40)
    order = [0, *(1 + rng.permutation(39))]
    one, other = Compared(measured), Compared(measured.rows(order))
    assert one.p_value(CONDITIONS) == other.p_value(CONDITIONS)
    np.testing.assert_allclose(one.scores(CONDITIONS)[order], other.scores(CONDITIONS), atol=1e-9)
    np.testing.assert_array_equal(one.masks("caption")[order], other.masks("caption"))


def test_the_picture_is_treated_as_its_controls_are():
    rng = np.random.default_rng(2)
    measured = drawn(rng, count=30)
    order = rng.permutation(30)
    scores = Compared(measured).scores(CONDITIONS)
    np.testing.assert_allclose(scores[order], Compared(measured.rows(order)).scores(CONDITIONS), atol=1e-9)


@pytest.mark.parametrize(("name", "held"), [("own", "caption"), ("none", "model")])
def test_a_picture_with_far_lower_errors_has_the_smallest_p_value(name, held):
    measured = changed(drawn(np.random.default_rng(3), count=20), name, 0.01)
    judged = Judged.of(Compared(measured), CONDITIONS, 0.05, range(19), [])
    assert judged.p_value == judged.p_values[name] == 1 / 20
    assert held in judged.held_by(0.05)


def test_complexity_is_taken_out():
    """The plainest picture has by far the lowest errors, which its detail explains."""
    rng = np.random.default_rng(4)
    found = []
    for _ in range(200):
        measured = drawn(rng, count=40)
        plain = np.exp(-1.5) * measured.detail.mean(axis=(1, 2)).min() / measured.detail[0].mean()
        errors = {name: values.copy() for name, values in measured.errors.items()}
        for values in errors.values():
            values[0] *= plain**0.8
        detail = measured.detail.copy()
        detail[0] *= plain
        assert errors["own"][0].mean() < errors["own"][1:].mean(axis=(1, 2, 3)).min()
        found.append(Compared(Measured(errors, detail)).p_value(CONDITIONS))
    assert np.mean(np.array(found) <= 0.05) <= 0.1
    # without detail to go by, all of them would be unusual
    blind = Measured(errors, np.ones_like(detail))
    assert Compared(blind).p_value(["none"]) == 1 / 40


def test_the_mask_is_the_window_that_is_known():
    measured = drawn(np.random.default_rng(5), count=40, side=16, spread=0.3)
    factor = np.ones((16, 16))
    factor[2:8, 8:14] = 0.02
    compared = Compared(changed(measured, "own", factor))
    judged = Judged.of(compared, CONDITIONS, 0.05, range(39), [])
    planted = factor < 1
    # windows of a map are three places wide, so that the nearest places beside it look known, too
    around = ndimage.binary_dilation(planted, np.ones((3, 3)))
    assert judged.p_value == 1 / 40
    assert judged.part == "window"
    assert judged.mask[planted].all()
    assert judged.mask[~around].mean() < 2 * PIXEL_RATE
    assert judged.map[planted].min() > judged.map[~planted].mean()
    assert judged.part_p == 1 / 40
    # every control has the mask of what it stands out by itself
    assert judged.masks[1:].mean() < 2 * PIXEL_RATE
    assert compared.masks("caption").mean() == pytest.approx(PIXEL_RATE, abs=0.001)


def test_a_caption_of_another_picture_is_doubted():
    measured = drawn(np.random.default_rng(6))
    right, wrong = (
        Judged.of(Compared(changed(measured, name, 0.05)), CONDITIONS, 0.05, range(19), []) for name in ("own", "other")
    )
    assert right.gap > 2.5
    assert right.gap_p == 1 / 20
    assert list(right.notes) == []
    assert wrong.gap < -2.5
    assert wrong.gap_p == 1
    [doubt] = wrong.notes
    assert doubt.endswith("is it the right one?")


def test_what_only_the_fine_tune_knows_is_held_by_training():
    rng = np.random.default_rng(7)
    measured = drawn(rng)
    base = measured.errors["own"] * np.exp(0.05 * rng.normal(size=measured.errors["own"].shape))
    base[0] *= 1.8
    compared = Compared(Measured({**measured.errors, "base": base}, measured.detail))
    judged = Judged.of(compared, [*CONDITIONS, "base"], 0.05, range(19), [])
    assert judged.p_values["base"] == 1 / 20
    assert "training" in judged.held_by(0.05)


def test_without_controls_nothing_is_known():
    judged = Judged(notes=["there are no controls"])
    assert math.isnan(judged.p_value)
    assert math.isnan(judged.gap)
    assert (judged.p_values, judged.held_by(1.0), judged.part) == ({}, "", "whole")
    assert not judged.mask.any()


def test_a_quadratic_function_of_the_covariate_leaves_nothing():
    rng = np.random.default_rng(8)
    x = rng.normal(size=50)
    np.testing.assert_allclose(freed(3 - 2 * x + 0.5 * x**2, x), 0, atol=1e-12)
    left = freed(rng.normal(size=50), x)
    for power in range(3):
        assert left @ x**power == pytest.approx(0, abs=1e-10)
    np.testing.assert_allclose(freed(x, np.ones(50)), x - x.mean(), atol=1e-12)


def test_the_unit_is_from_the_median_to_the_ninth_decile():
    values = np.arange(11.0)
    np.testing.assert_allclose(standardized(values), (values - 5) / 4)
    np.testing.assert_allclose(standardized(7 - 3 * values[::-1]), standardized(values) + 0, atol=1e-12)
    assert standardized(np.full(5, 2.0)).tolist() == [0.0] * 5


@pytest.mark.parametrize(("window", "reach"), [(0.125, 0), (0.25, 1), (0.5, 2), (1.0, 4)])
def test_windows_are_means_over_squares(window, reach):
    values = np.random.default_rng(9).normal(size=(2, 8, 8))
    padded = np.pad(values, ((0, 0), (reach, reach), (reach, reach)), mode="edge")
    wanted = [
        [padded[:, y : y + 2 * reach + 1, x : x + 2 * reach + 1].mean((1, 2)) for x in range(8)] for y in range(8)
    ]
    np.testing.assert_allclose(pooled(values, window), np.moveaxis(np.array(wanted), -1, 0), atol=1e-12)


def test_what_comes_back_nearest_scores_highest():
    near = np.ones((20, 3, 2, 2)) * np.random.default_rng(10).uniform(0.8, 1.2, size=(20, 3, 2, 2))
    near[..., 1] -= 1.5
    # one by pixels within the mask, one by edges of the whole
    near[4, :, 1, 0] = 0.1
    near[9, :, 0, 1] = 0.5
    scores = restored_scores(near)
    assert set(np.argsort(scores)[-2:]) == {4, 9}


def test_ties_count_against_the_picture():
    assert first_p_value(np.array([1.0, 1.0, 0.0, 2.0])) == 0.75
    assert first_p_value(np.array([3.0, 1.0, 0.0, 2.0])) == 0.25


def test_too_few_controls_are_refused():
    check_controls(19, 0.05)
    with pytest.raises(
        UsageError, match=r"^got 18 controls, and a rate of 0\.05 needs at least 19; give more, or an alpha of 0\.053$"
    ):
        check_controls(18, 0.05)


# what is concluded from both answers


def look(controls, near):
    """A look from one noise level, with how near the picture comes back; the controls come back at about 1."""
    rng = np.random.default_rng(11)
    others = torch.from_numpy(
        np.stack([rng.uniform(0.9, 1.1, (controls, 2, 1)), -rng.uniform(0.1, 0.2, (controls, 2, 1))], -1)
    )
    own = torch.tensor(near).expand(1, 2, 1, 2)
    starts = [Start(0.5, 3.0, 2), Start(1.0, math.inf, 5)]
    return Look(*({f"near/own/{at}": values for at in (0, 1)} for values in (own, others)), starts)


def judged(controls):
    return Judged.of(
        Compared(drawn(np.random.default_rng(12), count=controls + 1)), CONDITIONS, 0.05, range(controls), []
    )


def test_two_p_values_share_the_rate():
    first = judged(39)
    assert 0.1 < first.p_value < 0.5
    copied = Judgement(first, look(39, [0.01, 0.5]), 0, 0.05)
    assert copied.p_values["restored"] == 1 / 40
    assert copied.p_value == 2 / 40
    assert copied.made
    other = Judgement(first, look(39, [1.2, -0.5]), 0, 0.05)
    assert other.p_values["restored"] == 1
    assert other.p_value == 2 * first.p_value
    assert not other.made
    # without the closer look the first answer has its half of the rate as well
    assert Judgement(first, None, None, 0.05).p_value == 2 * first.p_value


def test_with_few_controls_the_first_p_value_is_the_only_one():
    first = judged(19)
    copied = Judgement(first, look(19, [0.01, 0.5]), 0, 0.05)
    assert copied.p_values["restored"] == 1 / 20
    assert copied.p_value == first.p_value
    assert Judgement(first, None, None, 0.05).p_value == first.p_value


def test_twice_a_p_value_is_at_most_1():
    plain = changed(drawn(np.random.default_rng(13), count=40), "own", 30.0)
    plain = changed(plain, "none", 30.0)
    first = Judged.of(Compared(plain), CONDITIONS, 0.05, range(39), [])
    assert first.p_value > 0.5
    assert Judgement(first, None, None, 0.05).p_value == 1


def test_a_restoration_says_how_many_controls_come_back_as_near():
    _, restoration = Judgement(judged(39), look(39, [0.4, -0.15]), 0, 0.05).restorations
    assert (restoration.seeds, restoration.copies, restoration.controls) == (1, 1, 0.0)
    assert restoration.distance == pytest.approx(0.4)
    _, restoration = Judgement(judged(39), look(39, [1.2, -0.5]), 0, 0.05).restorations
    assert (restoration.copies, restoration.controls) == (0, 1.0)
