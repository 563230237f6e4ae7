import numpy as np
import pytest
import torch

from cryptomnesia import Drift, EarlyDetail, UsageError, guard
from guarded_calls import ALWAYS, call
from memorizing import memorizer
from nulls import EVERYTHING, flagging, with_null


def test_an_early_decision_saves_the_rest_of_the_run(pipe, calibration, scores):
    evaluated = []
    pipe.unet.register_forward_hook(lambda *_: evaluated.append(1))
    flagged = flagging(calibration, EVERYTHING, Drift())
    with guard(pipe, flagged, policy="block", detector="drift", decide_by=2) as guarding:
        image = call(pipe, seeds=(0, 1), prompt=["a red circle"] * 2)
    assert len(evaluated) == 2
    assert not image.any()
    assert [verdict.action for verdict in guarding.verdicts] == ["withheld"] * 2
    assert all(verdict.first_flagged_step < 2 for verdict in guarding.verdicts)
    # one image is in order, so the run goes on
    evaluated.clear()
    plain = call(pipe, seeds=(0, 1), prompt=["a red circle"] * 2)
    with guard(pipe, calibration, fpr=0.5, decide_by=2) as observing:
        call(pipe, seeds=(0, 1), prompt=["a red circle"] * 2)
    evaluated.clear()
    early = [verdict.score for verdict in observing.verdicts]
    with guard(pipe, flagging(calibration, np.mean(early)), policy="block", decide_by=2) as guarding:
        images = call(pipe, seeds=(0, 1), prompt=["a red circle"] * 2)
    assert len(evaluated) == 3
    for row in range(2):
        assert np.array_equal(images[row], plain[row] if early[row] < np.mean(early) else np.zeros_like(plain[row]))


def test_a_flagged_run_ends_when_its_score_is_settled(pipe, calibration):
    """`early-detail` reads the first of three evaluations; what it says then is what it says at the end."""
    evaluated = []
    pipe.unet.register_forward_hook(lambda *_: evaluated.append(1))
    with guard(pipe, flagging(calibration, EVERYTHING)) as observing:
        call(pipe)
    assert len(evaluated) == 3
    evaluated.clear()
    with guard(pipe, flagging(calibration, EVERYTHING), policy="block") as guarding:
        call(pipe)
    assert len(evaluated) == 1
    (early,), (late,) = guarding.verdicts, observing.verdicts
    assert (early.score, early.p_value, early.first_flagged_step) == (late.score, late.p_value, late.first_flagged_step)
    # the score of another detector can change until the end
    evaluated.clear()
    with guard(pipe, calibration, policy="block", detector="drift", fpr=0.98):
        call(pipe)
    assert len(evaluated) == 3


def test_early_scores_are_judged_against_the_null_of_the_same_evaluation(pipe, calibration):
    null = torch.tensor([1e9, -1e9, 1e9]).expand(99, 3)
    with guard(pipe, with_null(calibration, EarlyDetail(), null), decide_by=2) as guarding:
        call(pipe)
    assert guarding.verdicts[0].p_value == 0.01
    with guard(pipe, with_null(calibration, EarlyDetail(), null)) as guarding:
        call(pipe)
    assert guarding.verdicts[0].p_value == 1.0


def test_what_cannot_tell_so_early_is_refused(pipe, calibration):
    with pytest.raises(UsageError, match="drift needs 2 evaluations before there is a score, got 1"):
        guard(pipe, calibration, detector="drift", fpr=0.5, decide_by=1)


def test_a_map_decides_as_soon_as_there_is_one():
    pipe, calibration, _ = memorizer()
    steps = []

    def call(prompt, **more):
        steps.clear()
        pipe(
            prompt,
            generator=torch.Generator().manual_seed(9),
            num_inference_steps=20,
            guidance_scale=1.01,
            output_type="latent",
            callback_on_step_end=lambda pipe, number, t, given: steps.append(number) or more.get("do", dict)(),
        )

    with pytest.raises(UsageError, match="collapse needs 7 evaluations before there is a score, got 6"):
        guard(pipe, calibration, detector="collapse", decide_by=6)
    with guard(pipe, calibration, detector="collapse", policy="block", decide_by=7) as guarding:
        call("a ring")
        assert (guarding.verdicts[0].action, guarding.verdicts[0].first_flagged_step, len(steps)) == ("withheld", 6, 7)
        call("a red circle")
        assert (guarding.verdicts[0].action, len(steps)) == ("none", 20)

    def stop():
        pipe._interrupt = len(steps) == 3
        return {}

    with guard(pipe, calibration, detector="collapse") as guarding:
        call("a ring", do=stop)
    pipe._interrupt = False
    assert np.isnan(guarding.verdicts[0].p_value)
    assert "the run ended after 3 of 20 evaluations" in guarding.verdicts[0].reason
    # a correction goes on beside it
    with guard(pipe, calibration, detector="collapse", policy="mitigate", mitigation=ALWAYS) as guarding:
        call("a ring")
    assert guarding.verdicts[0].corrected
    assert guarding.verdicts[0].flagged


def test_the_users_own_interruption_cannot_be_judged(pipe, calibration):
    def stop(pipe, index, t, values):
        pipe._interrupt = True
        return values

    with guard(pipe, calibration, fpr=0.5) as guarding:
        call(pipe, callback_on_step_end=stop)
    assert "could not tell: the run ended after 1 of 3 evaluations" in guarding.verdicts[0].reason


def test_latents_that_break_after_the_decision_are_not_called_clean(pipe, calibration):
    def spoil(pipe, index, t, values):
        if index == 1:
            values["latents"] = values["latents"] * torch.nan
        return values

    for settings in ({"decide_by": 1, "detector": "stability"}, {"detector": "guidance-first"}):
        with guard(pipe, calibration, policy="block", fpr=0.5, **settings) as guarding:
            image = call(pipe, callback_on_step_end=spoil)
        assert not guarding.verdicts[0].clean
        assert guarding.verdicts[0].action == "withheld"
        assert not image.any()
