"""The user's callback runs for every run whose image may be returned, and for no other."""

import pytest
import torch

from cryptomnesia import Regenerate, Rephrasing, StabilityRule, guard
from cryptomnesia.calibration.judging import Judge
from cryptomnesia.detectors import detector
from cryptomnesia.guarding.making import Maker
from cryptomnesia.testing.miniatures import CALL, SAMPLING, stable_diffusion
from cryptomnesia.tracing.reading import conditioning

STEPS = SAMPLING.steps


class Counter:
    """A callback that counts its calls, and the guarded pipeline's runs that make images."""

    def __init__(self, pipe, monkeypatch):
        self.calls = 0
        self.tensors = []
        self.runs = 0
        self.probes = 0
        generate, first = Maker.generate, Maker.first
        counter = self

        def counted(self, *args, **kwargs):
            counter.runs += 1
            return generate(self, *args, **kwargs)

        def probed(self, *args, **kwargs):
            counter.probes += 1
            before = counter.calls
            run = first(self, *args, **kwargs)
            assert counter.calls == before
            return run

        monkeypatch.setattr(Maker, "generate", counted)
        monkeypatch.setattr(Maker, "first", probed)

    def __call__(self, pipe, number, t, given):
        self.calls += 1
        self.tensors.append(sorted(given))
        return given


@pytest.fixture
def guarded():
    return stable_diffusion()


def call(pipe, callback, prompts=("a red circle", "a blue star")):
    return pipe(
        list(prompts),
        generator=[torch.Generator().manual_seed(seed) for seed in range(len(prompts))],
        callback_on_step_end=callback,
        callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"],
        output_type="latent",
        **CALL,
    )


ALWAYS = StabilityRule(tau_mild=-1.0, tau_strong=-1.0)


@pytest.mark.parametrize(
    ("policy", "mitigation", "several"),
    [
        ("observe", "auto", False),
        ("block", "auto", False),
        # corrects the user's own call
        ("mitigate", ALWAYS, False),
        ("mitigate", Rephrasing(most=2), True),
        (Regenerate(retries=2), Rephrasing(most=1), True),
        (Regenerate(retries=1), ALWAYS, True),
    ],
)
def test_it_runs_at_every_step_of_every_run_that_makes_images(
    policy, mitigation, several, guarded, calibration, monkeypatch
):
    counter = Counter(guarded, monkeypatch)
    # at this rate nearly every image is flagged, so that the policy has something to do; the score of the detector is
    # settled at the end, so that no run ends early
    with guard(guarded, calibration, policy=policy, fpr=0.98, mitigation=mitigation, detector="drift"):
        call(guarded, counter)
    assert (counter.runs > 1) == several
    assert counter.calls == STEPS * counter.runs
    assert counter.tensors == [["latents", "prompt_embeds"]] * counter.calls
    if policy == "mitigate":
        assert (counter.probes > 0) == isinstance(mitigation, Rephrasing)


def test_it_does_not_run_for_the_probes_of_a_mitigation(guarded, calibration, monkeypatch):
    counter = Counter(guarded, monkeypatch)
    maker = Maker(guarded, Judge(calibration, detector("stability"), 0.5))
    image = {
        "prompt": ["a red circle"],
        "generator": torch.Generator().manual_seed(0),
        "callback_on_step_end": counter,
        "callback_on_step_end_tensor_inputs": ["latents"],
        "output_type": "latent",
        **CALL,
    }
    run = maker.first([image, image], 2)
    assert run.norms["z"].shape == (2, 2)
    assert run.norms["z"].isfinite().all()
    assert counter.calls == 0
    output, (verdict,) = maker.make([image])
    assert counter.calls == STEPS
    assert torch.isfinite(output.images).all()
    # the probes are the first evaluations of the same run
    runs = maker.make([image])[1]
    assert runs[0].score == pytest.approx(verdict.score)


def test_a_callback_that_changes_latents_changes_the_image_and_no_probe(guarded, calibration):
    def spoil(pipe, number, t, given):
        return {"latents": given["latents"] * torch.nan}

    maker = Maker(guarded, Judge(calibration, detector("stability"), 0.5))
    image = {"prompt": ["a red circle"], "generator": torch.Generator().manual_seed(0), "output_type": "latent", **CALL}
    plain = maker.first([image], 2).norms["z"]
    spoiled = {**image, "callback_on_step_end": spoil}
    assert torch.equal(maker.first([spoiled], 2).norms["z"], plain)
    output, (verdict,) = maker.make([spoiled])
    assert output.images.isnan().all()
    assert not verdict.clean


def test_the_captions_of_a_baseline_are_read_without_it(guarded, calibration, monkeypatch):
    """Maps are computed after the call, when the user's arguments are not known any more."""
    counter = Counter(guarded, monkeypatch)
    with guard(guarded, calibration, fpr=0.5):
        call(guarded, counter)
    before = counter.calls
    inputs = conditioning(guarded, ["a red circle"], SAMPLING)
    assert inputs["encoder_hidden_states"].shape[0] == 1
    assert counter.calls == before == STEPS
