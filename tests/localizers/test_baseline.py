from dataclasses import replace

import pytest
import torch

from cryptomnesia import UsageError
from cryptomnesia.localizers import CurvatureDifference, DiagonalEstimator, ScoreDifference
from cryptomnesia.localizers.baseline import baseline_for, check_checkpoint
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.testing.miniatures import stable_diffusion, stable_diffusion_xl
from family_cases import CASES
from mapped_runs import PROMPTS, watched


def doubled(pipe):
    """The pipeline in float64, where finite differences have no rounding to speak of."""
    return pipe.to(torch.float64)


@pytest.mark.parametrize("name", ["sd unguided", "sd3 unguided", "flux distilled"])
def test_an_unguided_run_can_be_compared_with_an_empty_caption(name):
    case = CASES[name]
    pipe = case.make()
    seen = watched(case.setup(pipe))
    for localizer in (CurvatureDifference(-1), ScoreDifference()):
        with pytest.raises(UsageError, match="no unconditional branch"):
            localizer.map(seen)
    asked = replace(seen, baseline=baseline_for(case.setup(pipe), "empty", PROMPTS))
    assert ScoreDifference().map(asked).values.shape == (2, 8, 8)
    assert CurvatureDifference(-1).map(asked).values.max() > 0


def test_an_empty_caption_is_the_unconditional_branch_of_a_guided_run():
    case = CASES["sd-epsilon"]
    pipe = doubled(case.make())
    seen = watched(case.setup(pipe))
    asked = replace(seen, baseline=baseline_for(case.setup(pipe), "empty", PROMPTS))
    for localizer in (CurvatureDifference(-1), ScoreDifference()):
        torch.testing.assert_close(localizer.map(asked).values, localizer.map(seen).values, rtol=1e-6, atol=1e-8)


def test_another_checkpoint_is_a_baseline():
    case = CASES["sd-v"]
    pipe, other = doubled(case.make()), doubled(case.make())
    seen = watched(case.setup(pipe))
    setup = Setup.of(pipe, dict(case.call), other)
    same = replace(seen, baseline=baseline_for(setup, "checkpoint", PROMPTS))
    # of the same model with the same caption: nothing is remembered better
    for localizer in (CurvatureDifference(-1), ScoreDifference()):
        assert localizer.map(same).values.max() < 1e-8 < localizer.map(seen).values.max()
    with torch.no_grad():
        for weight in other.unet.parameters():
            weight.mul_(0.5)
    earlier = replace(seen, baseline=baseline_for(setup, "checkpoint", PROMPTS))
    short, forward = (
        CurvatureDifference(-1, estimator=estimator).difference(earlier).value
        for estimator in (DiagonalEstimator(step=1e-6), DiagonalEstimator(engine="forward"))
    )
    torch.testing.assert_close(short, forward, rtol=1e-4, atol=1e-5)
    # a step of σ/10 is short enough
    assert (CurvatureDifference(-1).difference(earlier).value - forward).norm() < 0.05 * forward.norm()


def test_a_baseline_of_another_kind_is_refused():
    pipe = stable_diffusion()
    with pytest.raises(UsageError, match="prediction type is v_prediction, the model's epsilon"):
        check_checkpoint(pipe, stable_diffusion("v_prediction"))
    with pytest.raises(UsageError, match="family is StableDiffusionXLPipeline, the model's StableDiffusionPipeline"):
        check_checkpoint(pipe, stable_diffusion_xl())
    other = stable_diffusion()
    with torch.no_grad():
        next(other.vae.parameters()).mul_(2.0)
    with pytest.raises(UsageError, match="autoencoder is"):
        check_checkpoint(pipe, other)
