"""What an audit says that a guard returns is what a guard returns."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from cryptomnesia import Escalate, Policy, Regenerate, Rephrasing, StabilityRule, guard
from cryptomnesia.calibration.judging import Judge
from cryptomnesia.detectors import Drift, EarlyDetail, Stability
from cryptomnesia.guarding.making import Maker
from cryptomnesia.guarding.policies import policy_of
from cryptomnesia.guarding.settling import corrects_runs, returned
from cryptomnesia.mitigations import PartialCaptions, Remade
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.testing.miniatures import CALL
from guarded_calls import ALWAYS, NEVER, call

SEEDS = range(6)


def calls_of(pipe, seeds=SEEDS):
    setup = Setup.of(pipe, CALL)
    return [
        {
            **setup.family.arguments(["a red circle"], setup.sampling),
            "generator": torch.Generator().manual_seed(seed),
            "output_type": "pt",
        }
        for seed in seeds
    ]


def settled(pipe, calibration, policy, mitigation, detector, fpr=0.5, seeds=SEEDS):
    """The images and verdicts without a guard, and what a guard would return, one image at a time."""
    alters = frozenset() if mitigation is None else mitigation.alters
    plain = Maker(pipe, Judge(calibration, detector, fpr))
    maker = Maker(pipe, Judge(calibration, detector, fpr), alters=alters)
    found = []
    for one in calls_of(pipe, seeds):
        output, verdicts = plain.make([one])
        found.append(
            (output.images[0], verdicts[0], returned([one], output.images, verdicts, policy, mitigation, maker)[0])
        )
    return found


@pytest.mark.parametrize(
    ("policy", "mitigation", "detector"),
    [
        ("block", None, Drift()),
        ("mitigate", Rephrasing(), Drift()),
        (Regenerate(retries=1), Rephrasing(), Drift()),
        (Escalate(rephrase=True), PartialCaptions(), Drift()),
        ("mitigate", ALWAYS, Drift()),
        ("mitigate", ALWAYS, Stability()),
        ("mitigate", NEVER, Drift()),
        ("mitigate", StabilityRule(), Stability()),
        # its score is settled before the end, so that flagged runs end early
        ("block", None, EarlyDetail()),
        ("mitigate", Rephrasing(), EarlyDetail()),
    ],
)
def test_it_is_what_a_guard_returns(pipe, calibration, policy, mitigation, detector):
    policy = policy_of(policy)
    found = settled(pipe, calibration, policy, mitigation, detector)
    assert {verdict.flagged for _, verdict, _ in found} == {True, False}
    with guard(
        pipe, calibration, policy=policy, mitigation=mitigation or "auto", detector=detector, fpr=0.5
    ) as guarding:
        for seed, (image, first, one) in zip(SEEDS, found, strict=True):
            picture = torch.from_numpy(call(pipe, seeds=(seed,))[0]).permute(2, 0, 1)
            expected = guarding.verdicts[0]
            assert one.verdict.action == expected.action
            assert (one.verdict.corrected, one.verdict.dropped) == (expected.corrected, expected.dropped)
            assert one.verdict.score == first.score
            if expected.action == "withheld":
                assert not picture.any()
                assert one.image is None
                assert np.isnan(one.p_value)
            else:
                np.testing.assert_allclose(image if one.image is None else one.image, picture, atol=1e-5)


def test_an_image_that_is_clean_costs_nothing_and_is_not_touched(pipe, calibration):
    for _, verdict, one in settled(pipe, calibration, policy_of("mitigate"), Rephrasing(), Drift()):
        if verdict.clean:
            assert (one.image, one.verdict, one.p_value, one.step) == (None, verdict, verdict.p_value, "")
            assert one.evaluations == 3
        else:
            assert one.evaluations > 3


def test_what_a_policy_spends_is_counted(pipe, calibration):
    """Three evaluations of the first run, three of every other seed."""
    settings = {"policy": policy_of("block"), "mitigation": None}
    assert {one.evaluations for *_, one in settled(pipe, calibration, **settings, detector=Drift())} == {3.0}
    # the score of `early-detail` is settled after one of the three
    for _, verdict, one in settled(pipe, calibration, **settings, detector=EarlyDetail()):
        assert one.evaluations == (1.0 if verdict.flagged else 3.0)

    @dataclass(frozen=True)
    class Twice(Policy):
        """Makes the image from two other seeds and returns the second."""

        name = "twice"

        def settle(self, images, studio, mitigation):
            made = [studio.make([image.other(attempt) for image in images])[0] for attempt in (1, 2)]
            return [
                Remade(replace(image.flagged.verdict, action="regenerated"), made[1], place)
                for place, image in enumerate(images)
            ]

    settings["policy"] = Twice()
    for _, verdict, one in settled(pipe, calibration, **settings, detector=Drift()):
        assert one.evaluations == (3.0 if verdict.clean else 9.0)
        # the image is judged, although the policy does not look at that
        assert 0 < one.p_value <= 1


@dataclass(frozen=True)
class Silent(Policy):
    """Returns no image, and says nothing about it."""

    name = "silent"

    def settle(self, images, studio, mitigation):
        return [Remade(image.flagged.verdict) for image in images]


def test_an_image_in_whose_place_nothing_is_returned_is_withheld(pipe, calibration):
    for _, verdict, one in settled(pipe, calibration, Silent(), None, Drift()):
        assert one.verdict.action == ("none" if verdict.clean else "withheld")


def test_a_correction_of_the_users_own_run_counts_instead_of_the_first_run(pipe, calibration):
    policy = policy_of("mitigate")
    assert corrects_runs(policy, ALWAYS)
    assert not corrects_runs(policy, Rephrasing())
    assert not corrects_runs(policy_of("escalate"), ALWAYS)
    for image, verdict, one in settled(pipe, calibration, policy, ALWAYS, Stability()):
        assert one.evaluations == 3
        assert one.step == "correction"
        assert not torch.equal(one.image, image)
        assert one.verdict.reason.startswith(f"{verdict.reason}; the corrected run: ")
    # a correction that changes nothing leaves the image as it was
    for _, verdict, one in settled(pipe, calibration, policy, NEVER, Drift()):
        assert one.image is None
        assert one.verdict.action == ("withheld" if verdict.flagged else "none")
