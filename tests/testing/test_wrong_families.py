"""The checks of a family find families that are wrong in one thing."""

import pytest
import torch

from cryptomnesia import UsageError
from cryptomnesia.pipelines.families import network, sd3, unet
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.testing import CheckError, check_family, run_checks
from cryptomnesia.testing.miniatures import stable_diffusion
from family_cases import CASES


def failures(name):
    """The first words of the checks that fail, and what they say."""
    found = {}
    for check in check_family(CASES[name].setup):
        try:
            check()
        except CheckError as error:
            found[check.name] = str(error)
    return found


@pytest.mark.parametrize("name", ["sd-epsilon", "sd unguided", "ddim"])
def test_right_families_pass(name):
    outcomes = run_checks(check_family(CASES[name].setup))
    assert all(outcome == "passed" for check, outcome in outcomes.items() if not check.startswith("localize: maps"))


def test_branches_that_are_taken_for_each_other(monkeypatch):
    monkeypatch.setattr(unet.UNetFamily, "first", "cond")
    found = failures("sd-epsilon")
    assert "taken for each other" in found["watch: the guided prediction lies on the line through both branches"]
    # asked again, the network says the same: this check cannot see it
    assert "localize: the network says the same when it is asked again" not in found


def test_a_sign_that_is_missing(monkeypatch):
    monkeypatch.setattr(unet.UNetFamily, "sign", -1.0)
    found = failures("sd-v")
    assert "watch: the guided prediction lies on the line through both branches" in found


def test_a_timestep_in_other_units(monkeypatch):
    monkeypatch.setattr(
        sd3.SD3Family, "time", lambda self, t, x: torch.tensor(t / 1000, device=x.device).expand(len(x))
    )
    assert failures("sd3").keys() == {"localize: the network says the same when it is asked again"}


def test_conditioning_that_is_dropped(monkeypatch):
    class Forgetful(network.NetworkDenoiser):
        def __call__(self, x, level, inputs):
            states = inputs["encoder_hidden_states"]
            return super().__call__(x, level, {**inputs, "encoder_hidden_states": torch.zeros_like(states)})

    monkeypatch.setattr(unet.UNetFamily, "denoiser", lambda self: Forgetful(self))
    assert "localize: the network says the same when it is asked again" in failures("sd-epsilon")


def test_settings_that_tell_another_number_of_branches(monkeypatch):
    monkeypatch.setattr(unet.UNetFamily, "guided_in", lambda self, sampling: False)
    found = failures("sd-epsilon")
    assert "watch: the settings tell whether there are two branches" in found


def test_a_known_failure_has_to_be_a_check():
    with pytest.raises(UsageError, match="unknown check 'it flies'"):
        check_family(lambda: Setup.of(stable_diffusion(), {}), known_failures={"it flies": "it cannot"})
