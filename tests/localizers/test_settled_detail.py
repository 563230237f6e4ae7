from dataclasses import replace

import pytest
import torch

from cryptomnesia.localizers import Collapse, DiagonalEstimator, SettledDetail, localizer
from cryptomnesia.localizers.settled_detail import FLOOR, local_detail
from cryptomnesia.pipelines.inputs import GRID, Shared
from family_cases import CASES
from mapped_runs import watched

ESTIMATOR = DiagonalEstimator(engine="reverse", probes=8, group=4)


def test_detail_of_noise_is_its_variance_away_from_the_border():
    noise = 3 * torch.randn(4, 8, 64, 64, generator=torch.Generator().manual_seed(0))
    found = local_detail(noise, {})[:, 20:-20, 20:-20]
    torch.testing.assert_close(found, torch.full_like(found, 9), rtol=0.05, atol=0)


def test_detail_of_a_ramp_is_a_quarter_of_its_squared_slope():
    rows = torch.arange(16.0).view(1, 1, 16, 1).expand(1, 1, 16, 16)
    found = local_detail(2 * rows, {})
    torch.testing.assert_close(found[0, 5:], torch.ones(11, 16))


def test_a_plain_picture_has_no_detail():
    assert local_detail(torch.full((2, 4, 8, 8), 0.7), {}).eq(0).all()


def test_detail_of_packed_latents_is_that_of_the_unpacked_ones():
    packed = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(0))
    # a token holds 2×2 latents of four channels, channels first
    latents = packed.view(2, 2, 3, 4, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(2, 4, 4, 6)
    torch.testing.assert_close(local_detail(packed, {GRID: Shared((2, 3))}), local_detail(latents, {}))


@pytest.mark.parametrize("name", ["sd-epsilon", "sd-v", "sd3"])
def test_the_map_is_the_capacity_of_detail_over_what_collapse_leaves(name):
    case = CASES[name]
    run = watched(case.setup(case.make()))
    share = Collapse(1, estimator=ESTIMATOR).map(run)
    found = SettledDetail(1, estimator=ESTIMATOR).map(run)
    last = run.trajectory.step(-1)
    detail = local_detail(last.guided.x0, last.cond_inputs)
    left = (1 - share.values).clamp_min(FLOOR)
    torch.testing.assert_close(found.values, 0.5 * ((left + detail) / left).log(), rtol=1e-4, atol=1e-6)
    assert (found.values > 0).any()
    # half of what the map changes from one standard error below the share to one above
    high, low = (1 - share.values - share.errors).clamp_min(FLOOR), (1 - share.values + share.errors).clamp_min(FLOOR)
    changed = ((high + detail) / high).log() / 2 - ((low + detail) / low).log() / 2
    torch.testing.assert_close(found.errors, changed / 2, rtol=1e-4, atol=1e-6)


def test_a_plain_end_gives_a_map_of_zeros():
    case = CASES["sd-epsilon"]
    run = watched(case.setup(case.make()))
    last = run.trajectory.step(-1)
    # the solver's estimate of the picture is x/α where the network's output is 0
    plain = replace(last.guided, x=torch.zeros_like(last.guided.x), value=torch.zeros_like(last.guided.value))
    steps = {**run.trajectory.steps, last.index: replace(last, guided=plain)}
    flat = replace(run, trajectory=replace(run.trajectory, steps=steps))
    assert SettledDetail(1, estimator=ESTIMATOR).map(flat).values.eq(0).all()


def test_every_baseline_has_its_name():
    for name in ("settled-detail", "settled-detail-empty", "settled-detail-checkpoint"):
        made = localizer(name)
        assert made.name == name
        assert made.evaluations == (0, 0.3, -1)


def test_it_observes_the_same_as_collapse_so_that_they_do_not_corroborate_each_other():
    assert SettledDetail().observes == Collapse().observes
