"""Mitigations that change noise, guidance or a region of a run."""

import pytest
import torch

from cryptomnesia import UsageError
from cryptomnesia.mitigations import (
    Correction,
    GuidanceDelay,
    InitialNoise,
    RegionRestricted,
    Sail,
    StabilityCalibrated,
)
from cryptomnesia.mitigations.descent import descended
from cryptomnesia.mitigations.guidance_delay import Delay
from cryptomnesia.mitigations.region_restricted import Restricted
from cryptomnesia.pipelines.call import silent
from cryptomnesia.pipelines.inputs import GRID, Shared, unpacked
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.testing.miniatures import stable_diffusion
from cryptomnesia.testing.setups import SETUPS
from cryptomnesia.tracing.watching import watch
from family_cases import MORE
from solvers import with_solver
from studios import flagged_of, made_latents, studio_of


def test_a_descent_ends_at_its_target():
    def objective(tensors):
        return tensors["x"].square().sum(), tensors["x"].norm()

    given = {"x": torch.tensor([3.0, 4.0])}
    sgd = lambda tensors: torch.optim.SGD(tensors, lr=0.25)  # noqa: E731
    # every step halves x: norms 5, 2.5, 1.25
    assert descended(given, objective, sgd, target=2.0, most=9)["x"].norm() == pytest.approx(1.25)
    assert descended(given, objective, sgd, target=0.0, most=1)["x"].norm() == pytest.approx(2.5)
    assert torch.equal(descended(given, objective, sgd, target=5.0, most=9)["x"], given["x"])
    assert torch.equal(given["x"], torch.tensor([3.0, 4.0]))


def test_small_gradients_do_not_underflow_in_half_precision():
    given = {"x": torch.ones(3, dtype=torch.float16)}

    def objective(tensors):
        assert tensors["x"].dtype == torch.float16
        return 1e-3 * tensors["x"].sum(), tensors["x"].sum()

    adam = lambda tensors: torch.optim.Adam(tensors, lr=0.05)  # noqa: E731
    found = descended(given, objective, adam, target=0.0, most=2)["x"]
    assert found.dtype == torch.float16
    torch.testing.assert_close(found, torch.full_like(found, 0.9), atol=1e-2, rtol=0)


@pytest.mark.parametrize("mitigation", [InitialNoise(target=0.0, most=2), Sail(target=0.0, most=2)])
def test_noise_is_moved_in_inference_mode_as_well(mitigation):
    setup = SETUPS["Stable Diffusion"]()
    studio = studio_of(setup)
    with torch.inference_mode():
        prepared = mitigation.prepare(flagged_of(setup, "a red circle"), studio)
    assert prepared.calls[0]["latents"].isfinite().all()


def test_objectives_by_hand():
    matrix = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    x = torch.tensor([3.0, 4.0])
    distance, measure = InitialNoise().objective(lambda at: matrix @ at, x)
    assert distance == measure == pytest.approx((36 + 16) ** 0.5)
    # Δ = (6, 4); ahead: x + Δ/‖Δ‖; and 0.05·‖x‖ = 0.25
    here = torch.tensor([6.0, 4.0])
    ahead = matrix @ (x + here / here.norm())
    total, measure = Sail().objective(lambda at: matrix @ at, x)
    assert total.item() == pytest.approx(ahead.norm().item() + 0.25)
    assert measure.item() == pytest.approx(here.norm().item())


@pytest.mark.parametrize("mitigation", [InitialNoise(target=0.0, most=3), Sail(target=0.0, most=3)])
@pytest.mark.parametrize("solver", ["Euler", "PNDM"])
def test_a_run_begins_with_the_noise_that_was_found(mitigation, solver):
    setup = Setup.of(with_solver(solver), {"num_inference_steps": 4, "guidance_scale": 2.0})
    studio = studio_of(setup)
    flagged = flagged_of(setup, "a red circle", "a green ring")
    before = studio.first([image.call for image in flagged], 1).step(0)
    prepared = mitigation.prepare(flagged, studio)
    after = studio.first(prepared.calls, 1).step(0)
    moved = (after.cond.x - before.cond.x).flatten(1).norm(dim=1) / before.cond.x.flatten(1).norm(dim=1)
    assert (moved > 1e-3).all()
    assert (moved < 0.5).all()

    def pull(step):
        return (step.cond.value - step.uncond.value).flatten(1).norm(dim=1)

    assert (pull(after) < pull(before)).all()


def test_a_pipeline_that_begins_from_a_picture_gets_no_other_noise():
    with pytest.raises(UsageError, match="takes no latents or begins from a picture"):
        InitialNoise().check(MORE["image to image"].setup())
    with pytest.raises(UsageError, match="at least 1 step"):
        Sail(most=0).check(SETUPS["Stable Diffusion"]())


def latents(setup, correction, prompt="a red circle", **more):
    watching = watch(setup.pipe, steer=None if correction is None else correction.steer)
    return made_latents(setup, [prompt], watching=watching, **more)


def test_without_guidance_until_the_end_the_caption_has_no_influence():
    setup = SETUPS["Stable Diffusion"]()
    alone = latents(setup, None, prompt="", guidance_scale=1.0)
    delayed = latents(setup, Delay(0.99, 0.0))
    torch.testing.assert_close(delayed, alone, atol=1e-5, rtol=1e-5)
    assert torch.equal(latents(setup, Delay(0.0, 0.0)), latents(setup, None))
    # guidance 2 until the end is the pipeline's own
    torch.testing.assert_close(latents(setup, Delay(0.99, 2.0)), latents(setup, None), atol=1e-5, rtol=1e-5)


def test_guidance_sets_in_behind_the_first_minimum():
    class Branch:
        def __init__(self, value):
            self.value = value

    class At:
        planned = 4

        def __init__(self, index, distance):
            self.index, self.sample = index, torch.zeros(2, 1)
            self.uncond = Branch(torch.zeros(2, 1))
            self.cond = Branch(torch.tensor(distance)[:, None])
            self.guided = Branch(3 * self.cond.value)

    delay = Delay(None, 0.0)
    distances = [[3.0, 1.0], [2.0, 2.0], [4.0, 1.0], [1.0, 1.0]]
    given = [delay.steer(At(index, found), None) for index, found in enumerate(distances)]
    assert [value if value is None else value.flatten().tolist() for value in given] == [[0, 0], [0, 6], None, None]


@pytest.mark.parametrize("until", [-0.1, 1.0])
def test_a_share_outside_the_run_is_refused(until):
    with pytest.raises(UsageError, match="give a share of the run"):
        GuidanceDelay(until=until).check(SETUPS["Stable Diffusion"]())


class Backwards(Correction):
    """Turns every prediction around."""

    def steer(self, step, solver):
        return -step.guided.value


@pytest.mark.parametrize("name", ["Stable Diffusion", "SD 3"])
def test_outside_the_mask_the_run_stays_and_inside_it_is_corrected(name):
    setup = SETUPS[name]()
    arguments = setup.family.arguments(["a red circle"], setup.sampling)
    with silent(setup.pipe), watch(setup.pipe, keep="all") as seen:
        setup.pipe(**arguments, generator=torch.Generator().manual_seed(0), output_type="latent")
    run = seen.trajectory
    height, width = run.latents.shape[-2:]
    mask = torch.zeros(1, height, width, dtype=torch.bool)
    mask[:, :, : width // 2] = True
    restricted = latents(setup, Restricted(Backwards(), run, mask))
    torch.testing.assert_close(restricted[..., width // 2 :], run.latents[..., width // 2 :], atol=1e-4, rtol=1e-4)
    assert (restricted[..., : width // 2] - run.latents[..., : width // 2]).abs().mean() > 0.1
    everywhere = latents(setup, Restricted(Backwards(), run, torch.ones_like(mask)))
    torch.testing.assert_close(everywhere, latents(setup, Backwards()), atol=1e-4, rtol=1e-4)
    nowhere = latents(setup, Restricted(Backwards(), run, torch.zeros_like(mask)))
    torch.testing.assert_close(nowhere, run.latents, atol=1e-4, rtol=1e-4)


def test_a_mask_of_packed_latents():
    from cryptomnesia.mitigations.region_restricted import _like

    inputs = {GRID: Shared((2, 3))}
    masks = torch.zeros(1, 4, 6, dtype=torch.bool)
    masks[0, 1, 2] = True
    packed = _like(masks, torch.zeros(1, 6, 8), inputs)
    assert torch.equal(unpacked(packed, inputs), masks[:, None].expand(-1, 2, -1, -1))


def test_the_published_rule_can_be_restricted_to_a_region():
    restricted = RegionRestricted("stability-published")
    restricted.check(SETUPS["Stable Diffusion"]())
    assert restricted.alters == {"delta"}


def test_only_a_mitigation_that_takes_one_run_can_be_restricted():
    with pytest.raises(UsageError, match="in one run, not rephrasing"):
        RegionRestricted("rephrasing").check(SETUPS["Stable Diffusion"]())


def test_a_calibration_without_maps_is_refused(calibration):
    from cryptomnesia import guard

    with pytest.raises(UsageError, match="has no maps of settled-detail"):
        guard(stable_diffusion(), calibration, policy="mitigate", mitigation="region-restricted")


@pytest.mark.parametrize("fpr", [0.01, 0.1])
def test_no_more_ordinary_runs_are_corrected_than_the_rate_says(calibration, fpr):
    references = calibration.references
    rule = StabilityCalibrated(fpr=fpr).rule(references)
    from cryptomnesia.detectors.base import Moments

    scores = [Moments.of(references.norms[n]).z_scores(references.norms[n]).abs() for n in ("delta", "x0")]
    triggered = (torch.minimum(*scores) > rule.tau_mild).any(dim=1).float().mean()
    assert triggered <= fpr
    assert 0 < rule.gamma < 5
    with pytest.raises(UsageError, match="both between 0 and 1"):
        StabilityCalibrated(fpr=0.0).check(SETUPS["Stable Diffusion"]())
