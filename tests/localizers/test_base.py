from dataclasses import dataclass, replace

import pytest
import torch
from diffusers import FluxPipeline, PNDMScheduler

from cryptomnesia import UsageError
from cryptomnesia.errors import NotFiniteError
from cryptomnesia.localizers import (
    BrightEnding,
    Collapse,
    Curvature,
    CurvatureDifference,
    DiagonalEstimator,
    GuidanceMap,
    Localizer,
    Map,
    ScoreDifference,
    SettledDetail,
    Watched,
)
from cryptomnesia.localizers.base import map_where_finite, over_channels
from cryptomnesia.pipelines.inputs import GRID, Shared
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.statistics import auc
from cryptomnesia.testing.miniatures import stable_diffusion
from family_cases import CASES
from mapped_runs import CHEAP, PLANTED, PROMPTS, watched

MAPS = (
    Collapse(1, estimator=CHEAP),
    SettledDetail(1, estimator=CHEAP),
    CurvatureDifference(-1, estimator=CHEAP),
    Curvature(-1, CHEAP),
    ScoreDifference(),
    GuidanceMap(),
    BrightEnding(),
)


def double(pipe):
    """The pipeline in float64, where finite differences have no rounding to speak of."""
    return pipe.to(torch.float64)


@pytest.mark.parametrize("localizer", [CurvatureDifference(-1), Curvature(-1), ScoreDifference(), GuidanceMap()])
def test_every_localizer_points_at_the_planted_half_of_a_gaussian(localizer, gaussian_run):
    maps = localizer.map(Watched(*gaussian_run)).values
    assert maps.shape == (3, 4, 4)
    assert (maps >= 0).all()
    for heat in maps:
        assert auc(heat[PLANTED].numpy(), heat[~PLANTED].numpy()) > 0.95


def test_a_run_under_autocast_is_not_subtracted_from_what_is_computed_without():
    case = CASES["sd-v"]
    pipe = double(case.make()).to(torch.float32)
    run = watched(case.setup(pipe))
    places = {
        place: replace(step, cond=replace(step.cond, value=step.cond.value.bfloat16()))
        for place, step in run.trajectory.steps.items()
    }
    coarse = replace(run, trajectory=replace(run.trajectory, steps=places))
    for localizer in (Collapse(1, estimator=CHEAP), Curvature(1, CHEAP), CurvatureDifference(1, estimator=CHEAP)):
        expected = localizer.estimate(run).value
        torch.testing.assert_close(localizer.estimate(coarse).value, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["sd-epsilon", "sd-v", "sdxl", "sd3", "flux true guidance"])
def test_maps_of_every_family_do_not_depend_on_the_batch(name):
    case = CASES[name]
    pipe = double(case.make())
    seen = watched(case.setup(pipe))
    again = watched(case.setup(pipe), prompts=PROMPTS[1:], seeds=(1,))
    for localizer in MAPS:
        if isinstance(localizer, BrightEnding) and not hasattr(seen.denoiser.module, "down_blocks"):
            with pytest.raises(UsageError, match="no cross-attention on its way down"):
                localizer.map(seen)
            continue
        both = localizer.map(seen).values
        assert both.shape == (2, 8, 8), localizer.name
        assert (both >= 0).all()
        for alone in (seen.rows([1]), again):
            torch.testing.assert_close(both[1:], localizer.map(alone).values, rtol=1e-6, atol=1e-8)


def test_packed_latents_are_laid_out_as_their_pipeline_does():
    channels, height, width = 4, 6, 4
    latents = torch.arange(2.0 * channels * height * width).view(2, channels, height, width)
    packed = FluxPipeline._pack_latents(latents, 2, channels, height, width)
    torch.testing.assert_close(over_channels(packed, {GRID: Shared((height // 2, width // 2))}), latents.sum(dim=1))


def test_compiled_networks_are_mapped():
    case = CASES["sd-epsilon"]
    pipe = case.make()
    estimators = [DiagonalEstimator(engine=engine, probes=16) for engine in ("finite", "reverse", "forward")]
    localizers = [*(CurvatureDifference(-1, estimator=estimator) for estimator in estimators), BrightEnding()]
    seen = watched(case.setup(pipe))
    plain = [localizer.map(seen).values for localizer in localizers]
    pipe.unet.compile(backend="eager")
    for localizer, expected in zip(localizers, plain, strict=True):
        torch.testing.assert_close(localizer.map(seen).values, expected, rtol=1e-3, atol=1e-3)


def test_maps_explain_what_they_lack():
    pipe = stable_diffusion()
    seen = watched(Setup.of(pipe, {"num_inference_steps": 4, "guidance_scale": 2.0}))
    for lacking in ({"prompts": None}, {"pipe": None}):
        with pytest.raises(UsageError, match="attention maps need the captions and the pipeline"):
            BrightEnding().map(replace(seen, **lacking))
    with pytest.raises(UsageError, match="step 2 of 4 holds no tensors"):
        ScoreDifference(step=2).map(seen)
    with pytest.raises(UsageError, match="got 0 probes"):
        DiagonalEstimator(probes=0)
    with torch.no_grad():
        next(pipe.unet.parameters()).fill_(torch.nan)
    with pytest.raises(UsageError, match="not finite"):
        CurvatureDifference(-1).map(seen)


@pytest.mark.parametrize(
    "localizer",
    [ScoreDifference(), Collapse(1, estimator=CHEAP), SettledDetail(1, estimator=CHEAP), Curvature(-1, CHEAP)],
)
@pytest.mark.parametrize("broken", [[2], [0, 3], [0, 1, 2, 3]])
def test_only_the_map_of_a_broken_image_is_lost(localizer, broken):
    case = CASES["sd-epsilon"]
    pipe = case.make()
    seen = watched(case.setup(pipe), prompts=["a red circle"] * 4, seeds=range(4))
    sound = localizer.map(seen)
    steps = {
        number: replace(step, cond=replace(step.cond, value=_broken(step.cond.value, broken)))
        for number, step in seen.trajectory.steps.items()
    }
    run = replace(seen, trajectory=replace(seen.trajectory, steps=steps))
    with pytest.raises(NotFiniteError):
        localizer.map(run)
    found = map_where_finite(localizer, run)
    assert found.values.shape == (4, 8, 8)
    for row in range(4):
        if row in broken:
            assert found.values[row].isnan().all()
        else:
            torch.testing.assert_close(found.values[row], sound.values[row], rtol=1e-4, atol=1e-4)
    if sound.errors is None or len(broken) == 4:
        assert found.errors is None
    else:
        assert found.errors.shape == (4, 8, 8)
        assert found.errors[broken].isnan().all()


def _broken(value, rows):
    value = value.clone()
    value[rows] = torch.nan
    return value


def test_the_map_of_a_broken_image_of_packed_latents_has_the_size_of_the_others():
    case = CASES["flux true guidance"]
    seen = watched(case.setup())
    steps = {
        number: replace(step, cond=replace(step.cond, value=_broken(step.cond.value, [0, 1])))
        for number, step in seen.trajectory.steps.items()
    }
    run = replace(seen, trajectory=replace(seen.trajectory, steps=steps))
    assert map_where_finite(ScoreDifference(), run).values.shape == ScoreDifference().map(seen).values.shape


@dataclass(frozen=True)
class Brightness(Localizer):
    """A third party's localizer: the latents' square at one evaluation."""

    step: int | float = -1

    name = "brightness"

    def map(self, watched):
        step = watched.trajectory.step(self.step)
        return Map(over_channels(step.cond.x0**2, step.cond_inputs))


def test_a_localizer_has_to_define_its_name_and_its_map_only():
    case = CASES["sd-epsilon"]
    setup = case.setup()
    made = Brightness()
    setup.check([made])
    assert made.evaluations == (-1,)
    assert made.requires == frozenset()
    assert made.cost(setup) == 0
    assert made.describe() == "brightness(step=-1)"
    assert made.map(watched(setup)).values.shape == (2, 8, 8)


def test_an_evaluation_outside_the_run_is_refused_before_anything_is_generated():
    setup = CASES["sd-epsilon"].setup()
    for place in (0, 3, -1, -4, 0.0, 0.99):
        setup.check([Brightness(place)])
    for place, message in [
        (4, "got the evaluation 4 of a run of 4; give one in 0 … 3"),
        (-5, "got the evaluation -5 of a run of 4"),
        (1.5, r"got the evaluation 1\.5; give a whole number, or a share of the run"),
    ]:
        with pytest.raises(UsageError, match=message):
            setup.check([Brightness(place)])


def test_the_evaluations_of_a_run_are_counted_without_one():
    pipe = stable_diffusion()
    call = {"num_inference_steps": 4, "guidance_scale": 2.0}
    assert Setup.of(pipe, call).evaluations == 4
    assert CASES["flux distilled"].setup().evaluations == 4
    assert CASES["ddpm"].setup().evaluations == 4
    pipe.scheduler = PNDMScheduler.from_config(pipe.scheduler.config, skip_prk_steps=True)
    assert Setup.of(pipe, call).evaluations == 5
    assert pipe.scheduler.timesteps is None
    # what only the run shows is not refused
    chosen = Setup.of(pipe, {**call, "timesteps": [900, 500, 100]})
    assert chosen.evaluations is None
    assert chosen.accepts(Brightness(7))
