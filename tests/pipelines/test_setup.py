import pytest

from cryptomnesia import Detector, Sampling, UsageError
from cryptomnesia.detectors import detector
from cryptomnesia.localizers import localizer
from cryptomnesia.mitigations import Rephrasing
from cryptomnesia.pipelines.fingerprint import fingerprint
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.testing.miniatures import CALL, SAMPLING, TRUE_GUIDANCE, flux, stable_diffusion, unconditional


def test_arguments_of_a_call_become_settings(pipe):
    setup = Setup.of(pipe, CALL)
    assert setup.sampling == SAMPLING
    assert setup.fingerprint == fingerprint(pipe, SAMPLING)
    assert setup.checkpoint is None
    assert type(setup.family).__name__ == "UNetFamily"
    more = Setup.of(pipe, {**CALL, "height": 32, "width": 24, "guidance_rescale": 0.5})
    assert more.sampling == Sampling(3, 2.0, 32, 24, {"guidance_rescale": 0.5})
    # None stands for the pipeline's default
    assert Setup.of(pipe, {"guidance_scale": None, "negative_prompt": None}).sampling == Setup.of(pipe, {}).sampling


def test_an_unknown_pipeline_is_refused():
    with pytest.raises(UsageError, match="unknown family dict"):
        Setup.of({}, {})


def test_what_a_method_requires_is_checked_and_named(pipe):
    unguided = Setup.of(pipe, {"guidance_scale": 1.0})
    for setup, method, message in [
        (
            unguided,
            detector("guidance-mean"),
            "guidance-mean needs the unconditional branch, and at guidance 1 this Sta",
        ),
        (Setup.of(flux(), {}), localizer("collapse"), r"collapse needs .* at guidance 3\.5 this FluxPipeline has none"),
        (Setup.of(unconditional(), {}), Rephrasing(), "rephrasing needs captions, and a DDIMPipeline takes none"),
        (
            Setup(pipe, SAMPLING),
            localizer("collapse-checkpoint"),
            "collapse-checkpoint needs a less-trained checkpoint",
        ),
    ]:
        with pytest.raises(UsageError, match=message):
            setup.check([detector("stability"), method])
        assert not setup.accepts(method)
    assert Setup(pipe, SAMPLING).accepts(detector("guidance-mean"))
    assert Setup(pipe, SAMPLING, stable_diffusion()).accepts(localizer("collapse-checkpoint"))
    assert Setup.of(flux(), TRUE_GUIDANCE).accepts(localizer("collapse"))


class Picky(Detector):
    name = "picky"

    def running(self, runs, references):
        return runs.norms["z"]

    def check(self, setup):
        if setup.sampling.steps < 10:
            raise UsageError(f"picky needs 10 steps, got {setup.sampling.steps}")


def test_a_method_checks_for_itself(pipe):
    with pytest.raises(UsageError, match="picky needs 10 steps, got 3"):
        Setup(pipe, SAMPLING).check([Picky()])
    assert Setup.of(pipe, {"num_inference_steps": 10}).accepts(Picky())
