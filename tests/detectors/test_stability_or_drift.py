"""Stability or drift: the larger of two z-scores, which are those of its parts."""

import pytest
import torch

from cryptomnesia import Drift, Stability, StabilityOrDrift, UsageError, calibrate, detect
from cryptomnesia.detectors import default_detector
from cryptomnesia.detectors.combined import unexplained
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.testing.miniatures import stable_diffusion, unconditional
from cryptomnesia.tracing.trajectory import Trajectory

EVALUATIONS = 6


def runs_of(count, seed, **scales):
    rng = torch.Generator().manual_seed(seed)
    norms = {
        name: (torch.randn(count, EVALUATIONS, generator=rng) * 0.2 + 1).abs() * scales.get(name, 1)
        for name in ("delta", "detail", "drift", "x0", "z")
    }
    norms["drift"][:, 0] = torch.nan
    return Trajectory(tuple(range(EVALUATIONS, 0, -1)), norms, {}, torch.empty(count, 0), complete=True)


def test_it_is_the_larger_of_its_parts_at_equal_detail():
    runs, references = runs_of(5, 1), runs_of(60, 2)
    parts = []
    for judge in (Stability(), Drift()):
        scores = [judge.running(of, references).double().clamp_min(1e-12).log() for of in (runs, references)]
        details = [of.norms["detail"].double().log() for of in (runs, references)]
        parts.append(unexplained(scores[0], details[0], scores[1], details[1]))
    score = StabilityOrDrift().running(runs, references)
    torch.testing.assert_close(score, torch.maximum(*parts).float())
    assert score.isfinite().all()


@pytest.mark.parametrize("unusual", ["delta", "drift"])
def test_either_part_is_enough(unusual):
    references = runs_of(60, 2)
    usual, shifted = (StabilityOrDrift().running(runs_of(5, 1, **{unusual: s}), references)[:, -1] for s in (1, 6))
    assert (shifted > usual.max() + 1).all()


def test_it_is_the_default_without_captions():
    assert isinstance(default_detector(Setup.of(unconditional(), {"num_inference_steps": 4})), StabilityOrDrift)


def test_runs_of_one_evaluation_are_judged_by_stability():
    pipe = stable_diffusion()
    call = {"num_inference_steps": 1, "guidance_scale": 1.0}
    calibration = calibrate(pipe, [f"a red circle {number}" for number in range(102)], **call)
    (found,) = detect(pipe, "a blue star", calibration=calibration, fpr=0.1, **call)
    assert found.verdict.detector == "early-detail"
    assert default_detector(Setup.of(unconditional(), {"num_inference_steps": 1})).name == "stability"
    with pytest.raises(UsageError, match="needs two evaluations, and the run has one; use `stability`"):
        detect(pipe, "a blue star", calibration=calibration, fpr=0.1, detector="stability-or-drift", **call)
