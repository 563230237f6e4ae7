"""What a calibration says of maps, and which of them it refuses."""

import pytest
import torch

from cryptomnesia import Calibration, UsageError, calibrate
from cryptomnesia.localizers import Curvature, GuidanceMap, ScoreDifference
from cryptomnesia.pipelines.fingerprint import weights_digest
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.testing.miniatures import CALL, PROMPTS, stable_diffusion

RUN, COMPARED = ScoreDifference(), ScoreDifference(baseline="checkpoint")


@pytest.fixture(scope="module")
def other():
    """A checkpoint of the same miniature that knows less."""
    pipe = stable_diffusion()
    with torch.no_grad():
        for weight in pipe.unet.parameters():
            weight.mul_(0.9)
    return pipe


@pytest.fixture(scope="module")
def fitted(pipe, other):
    return calibrate(pipe, PROMPTS, localizers=[RUN, COMPARED], checkpoint=other, batch_size=34, **CALL)


def test_maps_are_split_and_survive_saving(pipe, fitted, other, tmp_path):
    fitted.save(tmp_path / "calibration.safetensors")
    again = Calibration.load(tmp_path / "calibration.safetensors")
    again.check(Setup.of(pipe, CALL, other))
    again.check_localizers([RUN, COMPARED], weights_digest(other))
    assert set(again.maps) == {"score-difference", "score-difference-checkpoint"}
    for localizer in (RUN, COMPARED):
        reference, loaded = fitted.map_reference(localizer), again.map_reference(localizer)
        assert reference.fitting.shape == (34, 8, 8)
        assert reference.null.shape == (68, 8, 8)
        assert torch.equal(loaded.null, reference.null)
        assert torch.equal(loaded.fitting, reference.fitting)
    assert [file.name for file in tmp_path.iterdir()] == ["calibration.safetensors"]


def test_maps_and_norms_are_those_of_the_same_runs(pipe, fitted, other):
    """One file holds both, so a calibration with maps judges images too."""
    plain = calibrate(pipe, PROMPTS, batch_size=34, **CALL)
    for name, norms in plain.runs.norms.items():
        torch.testing.assert_close(fitted.runs.norms[name], norms, equal_nan=True)
    assert len(fitted.maps["score-difference"]) == len(fitted) == len(PROMPTS)


def test_other_maps_are_refused(pipe, fitted, other):
    with pytest.raises(UsageError, match="steps is 4, calibrated 3"):
        fitted.check(Setup.of(pipe, {**CALL, "num_inference_steps": 4}))
    for absent in (Curvature(), ScoreDifference(baseline="empty"), GuidanceMap()):
        with pytest.raises(UsageError, match=f"no maps of {absent.name} .*it has: score-difference, "):
            fitted.check_localizers([absent])
    with pytest.raises(UsageError, match=r"step=0, .*calibrated score-difference.*step=-1"):
        fitted.check_localizers([ScoreDifference(0)])
    with pytest.raises(UsageError, match=r"against [0-9a-f]{12}, calibrated .* against [0-9a-f]{12}; use the same"):
        fitted.check_localizers([COMPARED], weights_digest(pipe))
    with pytest.raises(UsageError, match="got 3 reference prompts"):
        calibrate(pipe, PROMPTS[:3], localizers=[RUN], **CALL)
