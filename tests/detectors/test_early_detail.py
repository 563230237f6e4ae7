"""Early detail: on closed forms, and what it refuses."""

import math
from dataclasses import replace

import pytest
import torch
from diffusers import DDPMPipeline, LCMScheduler

from cryptomnesia import EarlyDetail, UsageError
from cryptomnesia.detectors import default_detector
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.testing.miniatures import SAMPLING, stable_diffusion, unconditional
from cryptomnesia.testing.setups import SETUPS
from cryptomnesia.tracing.trajectory import Trajectory
from family_cases import FLOWS, MORE


def runs(detail, planned=10, **norms):
    values = torch.tensor(detail, dtype=torch.float32)
    times = tuple(float(t) for t in range(planned, 0, -1))
    norms = {"detail": values, "z": torch.ones_like(values), **norms}
    return Trajectory(times, norms, {}, torch.empty(len(values), 0), complete=values.shape[1] == planned)


E = math.e
USUAL = runs([[E**1, E**2, E**3, *[1.0] * 7], [E**3, E**4, E**3, *[1.0] * 7]])
"""Log details with means 2, 3 and deviations √2, √2 in the first fifth of ten evaluations."""


def test_the_score_is_the_mean_z_score_of_the_first_fifth():
    judged = runs([[E**4, E**3, *[9.0] * 8], [E**2, E**3, *[9.0] * 8]])
    first, second = 2 / 2**0.5, 0.0
    running = EarlyDetail().running(judged, USUAL)
    expected = torch.tensor([[first, *[(first + second) / 2] * 9], [0.0] * 10])
    torch.testing.assert_close(running, expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(EarlyDetail().score(judged, USUAL), expected[:, -1], atol=1e-6, rtol=1e-5)
    alone = EarlyDetail(share=0.05).running(judged, USUAL)
    torch.testing.assert_close(alone, torch.tensor([[first] * 10, [0.0] * 10]), atol=1e-6, rtol=1e-5)
    cut = EarlyDetail().running(runs([[E**4]]), USUAL)
    torch.testing.assert_close(cut, torch.tensor([[first]]))


def test_a_detail_that_never_varies_gives_finite_scores():
    same = runs([[2.0] * 10] * 3)
    scores = EarlyDetail().running(runs([[2.0] * 10, [2.2] * 10]), same)
    assert scores[0].abs().max() < 1e-5
    # a hundredth is the smallest deviation of the logarithm
    torch.testing.assert_close(scores[1], torch.full((10,), math.log(1.1) / 0.01))


def test_what_is_not_known_has_no_score():
    unknown = runs([[math.nan] * 10, [E] * 10])
    scores = EarlyDetail().running(unknown, USUAL)
    assert scores[0].isnan().all()
    assert scores[1].isfinite().all()


def test_runs_that_do_not_begin_from_noise_alone_are_refused():
    method = EarlyDetail()
    assert Setup(stable_diffusion(), SAMPLING).accepts(method)
    for name in ("SDXL", "SD 3", "Flux"):
        assert SETUPS[name]().accepts(method)
    with pytest.raises(UsageError, match="early-detail needs captions, and a DDPMPipeline takes none"):
        Setup(unconditional(DDPMPipeline), SAMPLING).check([method])
    refused = "needs runs that begin from noise and a caption alone, and this call is given image"
    given = ("image to image", "inpainting", "controlnet", "two controlnets")
    for case in (*(MORE[name] for name in given), FLOWS["kontext"], FLOWS["flux 2 edited"]):
        with pytest.raises(UsageError, match=refused):
            case.setup(case.make()).check([method])
    pipe = stable_diffusion()
    adapted = Setup(pipe, replace(SAMPLING, options={"ip_adapter_image_embeds": [torch.zeros(1, 1, 4)]}))
    with pytest.raises(UsageError, match="this call is given ip_adapter_image_embeds; use `combined`"):
        adapted.check([method])
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    with pytest.raises(UsageError, match="a LCMScheduler is for models that make pictures in a few steps"):
        Setup(pipe, SAMPLING).check([method])


@pytest.mark.parametrize("share", [0.0, -0.1, 1.5, math.nan])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(UsageError, match="give a share of the run above 0 and up to 1"):
        EarlyDetail(share=share)


def test_it_is_the_default_where_pictures_are_made_from_captions_alone():
    for name in ("Stable Diffusion", "Stable Diffusion without guidance", "SDXL", "Flux"):
        assert default_detector(SETUPS[name]()).name == "early-detail"
    case = MORE["image to image"]
    pipe = case.make()
    assert default_detector(case.setup(pipe)).name == "combined"
    unguided = Setup.of(pipe, {**case.call, "guidance_scale": 1.0})
    assert default_detector(unguided).name == "stability-or-drift"
