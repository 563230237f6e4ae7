import pytest
from diffusers import FirstBlockCacheConfig

from cryptomnesia import UsageError
from cryptomnesia.localizers import (
    Collapse,
    Curvature,
    CurvatureDifference,
    ScoreDifference,
    configured,
    default_localizer,
    localizer,
    localizers_of,
)
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.testing.miniatures import flux, stable_diffusion, unconditional
from family_cases import CASES
from mapped_runs import CHEAP


def test_localizers_are_made_by_name():
    made = configured(localizer("curvature-difference-checkpoint"), step=-3, estimator=CHEAP)
    assert made == CurvatureDifference(-3, "checkpoint", CHEAP)
    assert localizer("score-difference-empty").baseline == "empty"
    assert localizer("curvature") == Curvature()
    assert localizer(Collapse) == Collapse()
    assert localizer(Collapse(1)) == Collapse(1)
    for name in ("tarot", "bright-ending-checkpoint"):
        with pytest.raises(UsageError, match=rf"unknown localizer '{name}'; known are bright-ending, .*-checkpoint"):
            localizer(name)
    with pytest.raises(UsageError, match="got the localizer 'auto' without a set-up"):
        localizer("auto")
    with pytest.raises(UsageError, match=r"got 7 as localizer, which lacks name, .*map, .*give a registered name"):
        localizer(7)


def test_settings_that_a_localizer_lacks_change_nothing():
    assert configured(ScoreDifference(), step=-2, estimator=CHEAP) == ScoreDifference(-2)
    assert configured(ScoreDifference(), step=None) == ScoreDifference()


def test_what_a_localizer_lacks_is_said_before_anything_is_generated():
    call = {"num_inference_steps": 3, "guidance_scale": 2.0}
    guided = Setup.of(stable_diffusion(), call)
    unguided = Setup.of(stable_diffusion(), {**call, "guidance_scale": 1.0})
    run, compared, asked = "score-difference", "score-difference-checkpoint", "score-difference-empty"
    with pytest.raises(UsageError, match="got no map to compute"):
        localizers_of([], guided)
    for setup in (unguided, Setup.of(flux(), {"guidance_scale": 3.5})):
        with pytest.raises(UsageError, match="score-difference needs the unconditional branch"):
            localizers_of(run, setup)
    with pytest.raises(UsageError, match="needs a less-trained checkpoint"):
        localizers_of([compared], guided)
    with pytest.raises(UsageError, match="prediction type is v_prediction"):
        localizers_of(compared, Setup.of(stable_diffusion(), call, stable_diffusion("v_prediction")))
    with pytest.raises(UsageError, match="of which two have the same name"):
        localizers_of([run, ScoreDifference(0)], guided)
    captionless = Setup.of(unconditional(), {"num_inference_steps": 3})
    for name in ("bright-ending", asked):
        with pytest.raises(UsageError, match=f"{name} needs captions, and a DDIMPipeline takes none"):
            localizers_of(name, captionless)
    assert localizers_of(asked, unguided) == [ScoreDifference(baseline="empty")]


@pytest.mark.parametrize(
    ("case", "name"),
    [
        ("sd-epsilon", "settled-detail"),
        ("sd-v", "settled-detail"),
        ("sdxl", "settled-detail"),
        ("sd3", "settled-detail"),
        ("flux true guidance", "settled-detail"),
        ("sd unguided", "settled-detail-empty"),
        ("sd3 unguided", "settled-detail-empty"),
        ("flux distilled", "settled-detail-empty"),
        ("ddim", "curvature"),
        ("ddpm", "curvature"),
    ],
)
def test_the_default_is_what_the_family_offers(case, name):
    assert default_localizer(CASES[case].setup()).name == name


def test_without_any_default_the_user_has_to_choose():
    setup = CASES["flux true guidance"].setup()
    setup.pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(
        UsageError, match="none of the localizers settled-detail, settled-detail-empty, curvature works"
    ):
        default_localizer(setup)
