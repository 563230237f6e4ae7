import re
from dataclasses import dataclass, replace

import pytest
import torch

from cryptomnesia import Collapse, Detector, Drift, ScoreDifference, UsageError, calibrate
from cryptomnesia.calibration.captions import Captions
from cryptomnesia.calibration.fitting import FIRST_SEED, check_references, warn_of_references
from cryptomnesia.calibration.recording import fitted, recorded_for
from cryptomnesia.calibration.stored import split
from cryptomnesia.detectors import MapMean
from cryptomnesia.detectors import detector as detector_of
from cryptomnesia.files import prompts_digest
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.statistics import needed_references
from cryptomnesia.testing.miniatures import CALL, PROMPTS, SAMPLING, stable_diffusion, unconditional
from cryptomnesia.tracing.generation import generate
from cryptomnesia.tracing.trajectory import NORMS, Norm, Signal
from runs import calibration_of_runs, trajectory


def test_no_picture_is_decoded(calibration, monkeypatch):
    pipe = stable_diffusion()
    monkeypatch.setattr(pipe.vae, "decode", None)
    again = calibrate(pipe, PROMPTS, batch_size=34, **CALL)
    for name, values in calibration.runs.norms.items():
        torch.testing.assert_close(again.runs.norms[name], values, rtol=0, atol=0, equal_nan=True)
    stability = detector_of("stability")
    assert torch.equal(again.null(stability), calibration.null(stability))


def test_image_i_has_the_first_seed_plus_i(calibration, pipe):
    (batch,) = generate(Setup(pipe, SAMPLING), [PROMPTS[7]], [FIRST_SEED + 7], decode=False)
    torch.testing.assert_close(batch.trajectory.norms["z"][0], calibration.runs.norms["z"][7], rtol=1e-4, atol=1e-4)


def test_prompts_may_be_a_file(calibration, pipe, tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(PROMPTS))
    for given in (path, str(path)):
        again = calibrate(pipe, given, batch_size=34, **CALL)
        assert again.prompts_sha256 == calibration.prompts_sha256 == prompts_digest(PROMPTS)
        assert torch.equal(again.runs.norms["z"], calibration.runs.norms["z"])


def test_references_that_are_too_few_or_repeated_are_refused(pipe):
    with pytest.raises(UsageError, match="got 3 reference prompts; give at least 100"):
        calibrate(pipe, PROMPTS[:3], **CALL)
    with pytest.raises(UsageError, match="1 of 103 reference prompts are repeated; give every prompt once"):
        calibrate(pipe, [*PROMPTS, PROMPTS[0]], **CALL)
    check_references(["a"] * 100, repeated=True)


@pytest.mark.parametrize("fpr", [0.5, 0.1, 0.05, 0.015, 1 / 69, 0.01, 0.0099, 0.001])
def test_the_number_of_references_that_a_rate_needs_is_known_beforehand(fpr):
    need = max(100, needed_references(fpr))
    enough = [str(number) for number in range(need)]
    check_references(enough, fpr=fpr)
    assert 1 / (len(split(need)[1]) + 1) <= fpr * (1 + 1e-9)
    if need > 100:
        with pytest.raises(UsageError, match=f"; a rate of {fpr:g} needs {need} reference prompts, or give a higher"):
            check_references(enough[1:], fpr=fpr)


def test_the_page_says_what_references_support(request):
    page = (request.config.rootpath / "docs" / "how-to" / "calibrate.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| (\d+) \| (0\.\d+) \|$", page, flags=re.MULTILINE)
    assert len(rows) == 6
    for count, null, smallest in rows:
        assert len(split(int(count))[1]) == int(null)
        assert f"{1 / (int(null) + 1):.3g}" == smallest


def test_a_rate_that_references_do_not_support_is_refused_before_anything_is_generated(pipe, monkeypatch):
    assert needed_references(0.01) == 148
    monkeypatch.setattr(pipe.unet, "forward", lambda *args, **kwargs: pytest.fail("something was generated"))
    message = (
        r"102 reference prompts leave 68 for the null, so no p-value is below 0\.0145; a rate of 0\.01 needs 148 "
        "reference prompts, or give a higher rate"
    )
    with pytest.raises(UsageError, match=message):
        calibrate(pipe, PROMPTS, fpr=0.01, **CALL)
    for fpr, message in [("0.01", "got fpr='0.01'; give a number"), (0.0, "got the false-positive rate 0; give one")]:
        with pytest.raises(UsageError, match=message):
            calibrate(pipe, PROMPTS, fpr=fpr, **CALL)


def test_too_few_references_for_the_default_rate_are_told(pipe, caplog):
    calibrate(pipe, PROMPTS, batch_size=51, **CALL)
    assert "no p-value is below 1/69 = 0.0145; the default false-positive rate of 0.01 needs 148" in caplog.text
    caplog.clear()
    calibrate(pipe, PROMPTS, fpr=0.05, batch_size=51, **CALL)
    assert caplog.text == ""


def test_references_that_look_memorized_or_repeat_each_other_are_told(caplog):
    generator = torch.Generator().manual_seed(0)
    norms = {name: torch.rand(150, 3, generator=generator) + 1 for name in NORMS}
    for values in norms.values():
        values[7] += 100
    runs = trajectory(norms["z"], **norms)
    captions = Captions.of(["a red circle", *(f"a star {number}" for number in range(148)), "A red circle!"])
    warn_of_references(calibration_of_runs(runs, captions=captions))
    first, second = caplog.messages
    assert first.startswith("reference prompts with the words of an earlier one")
    assert ": 149 (counted from 0)" in first
    assert second.startswith("reference prompts that look memorized themselves: 7 (counted from 0); see `Calibration.")


def test_captions_do_not_count_for_a_model_without_them():
    calibration = calibrate(unconditional(), ["a red circle"] * 100, num_inference_steps=2, batch_size=50)
    assert len(calibration) == 100
    assert not calibration.captions.worded
    assert calibration.captions.duplicates == []


def test_whatever_does_not_fit_is_refused_before_anything_is_generated(monkeypatch):
    pipe = stable_diffusion()
    monkeypatch.setattr(pipe.unet, "forward", lambda *args, **kwargs: pytest.fail("something was generated"))
    for settings, message in [
        ({"detectors": ["tarot"]}, "unknown detector 'tarot'"),
        ({"localizers": ["tarot"]}, "unknown localizer 'tarot'"),
        ({"localizers": ["collapse-checkpoint"]}, "needs a less-trained checkpoint"),
        ({"detectors": ["guidance-mean"], "guidance_scale": 1.0}, "guidance-mean needs the unconditional branch"),
        ({"num_inference_steps": 0}, "got 0 steps; give at least 1"),
        ({"num_inference_steps": 1001}, "got 1001 steps, the model knows 1000 timesteps"),
        ({"height": 32}, "got height 32 and width None; give both or neither"),
        ({"tarot": 1}, "takes no tarot"),
        ({"batch_size": 0}, "got a batch size of 0; give at least 1"),
        ({"seed": 1.5}, r"got seed=1\.5; give a whole number"),
        ({"seed": -1}, "got the seed -1; give 0 or more"),
    ]:
        with pytest.raises(UsageError, match=message):
            calibrate(pipe, PROMPTS, **{**CALL, **settings})
    with pytest.raises(
        UsageError, match="got prompts=None; give a text, a list of texts, or the Path of a prompts file"
    ):
        calibrate(pipe, None, **CALL)
    with pytest.raises(UsageError, match=r"prompt 'red red .*\.\.\.' has \d+ tokens, the model takes \d+; shorten it"):
        calibrate(pipe, [*PROMPTS, "red " * 100], long="error", **CALL)


def test_one_method_is_given_as_a_list_of_one(pipe):
    def calibrated(detectors, localizers):
        made = calibrate(pipe, PROMPTS, detectors=detectors, localizers=localizers, batch_size=51, **CALL)
        return made.made_by, made.maps

    for detectors, localizers in [
        ("guidance-first", "score-difference"),
        (Drift(), ScoreDifference()),
        (Drift, ScoreDifference),
        (MapMean(ScoreDifference()), "auto"),
    ]:
        made_by, maps = calibrated(detectors, localizers)
        expected_made_by, expected_maps = calibrated([detectors], [localizers])
        assert made_by == expected_made_by
        assert maps.keys() == expected_maps.keys()
        assert len(maps) == 1
    with pytest.raises(UsageError, match="unknown detector 'tarot'"):
        calibrate(pipe, PROMPTS, detectors="tarot", **CALL)
    with pytest.raises(UsageError, match="got 7 as detector"):
        calibrate(pipe, PROMPTS, detectors=7, **CALL)


def test_output_that_is_not_finite_is_refused():
    pipe = stable_diffusion()
    with torch.no_grad():
        pipe.unet.conv_out.bias.fill_(torch.nan)
    with pytest.raises(UsageError, match="holds NaN or infinity on 102 of 102 reference prompts; check its weights"):
        calibrate(pipe, PROMPTS, batch_size=51, **CALL)


def test_runs_and_maps_that_are_not_whole_are_refused(pipe):
    setup = Setup(pipe, SAMPLING)
    runs = trajectory(torch.rand(102, 3))
    assert len(fitted(setup, PROMPTS, runs, {})) == 102
    with pytest.raises(UsageError, match="the reference runs ended before their last step"):
        fitted(setup, PROMPTS, replace(runs, complete=False), {})
    maps = torch.rand(102, 4, 4)
    maps[3, 1, 1] = torch.nan
    with pytest.raises(UsageError, match="1 of 102 reference maps of collapse are not finite"):
        fitted(setup, PROMPTS, runs, {"collapse": maps})


def test_progress_is_told_up_to_the_number_of_images(pipe):
    seen = []
    calibrate(pipe, PROMPTS, batch_size=51, progress=seen.append, **CALL)
    assert seen == pytest.approx([17, 34, 51, 68, 85, 102])


@dataclass(frozen=True)
class Scaled:
    factor: float
    name: str = "scaled"

    def __call__(self, step, latents, previous):
        return self.factor * latents.flatten(1).norm(dim=1)


@dataclass(frozen=True)
class Reader(Detector):
    """Reads one norm and one signal of its own."""

    name: str = "reader"
    norms: tuple[Norm, ...] = ()
    signals: tuple[Signal, ...] = ()

    def running(self, runs, references):
        return runs.norms[self.norms[0].name]


def test_what_several_detectors_need_is_recorded_once():
    (signal,) = MapMean(Collapse()).signals
    (other,) = MapMean(Collapse(step=0.5)).signals
    norms, signals = recorded_for([Reader("a", (Scaled(1.0),), (signal,)), Reader("b", (Scaled(1.0),), (signal,))])
    assert norms == [Scaled(1.0)]
    assert signals == [signal]
    with pytest.raises(
        UsageError, match=r"got two kinds of scaled: .*1\.0.* and .*2\.0.*; calibrate with one detector"
    ):
        recorded_for([Reader("a", (Scaled(1.0),), (signal,)), Reader("b", (Scaled(2.0),), (signal,))])
    with pytest.raises(UsageError, match="got two kinds of collapse: "):
        recorded_for([Reader("a", (Scaled(1.0),), (signal,)), Reader("b", (Scaled(1.0),), (other,))])
