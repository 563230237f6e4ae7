"""The norms of a run: the same numbers, however many evaluations are computed together."""

import math
from types import SimpleNamespace

import pytest
import torch

from cryptomnesia.pipelines.denoiser import Prediction, detail, norms
from cryptomnesia.tracing import recording
from cryptomnesia.tracing.information import gained, log_snr, noise_scale
from cryptomnesia.tracing.recording import Norms

STEPS = 7
SHAPE = (2, 4, 8, 8)


def steps(dtype=torch.float32, kind="epsilon", guided=range(STEPS), wide=()):
    """Evaluations with random tensors, and the latents after each; those in `wide` have latents in fp64."""
    rng = torch.Generator().manual_seed(0)

    def made(number):
        found = torch.randn(SHAPE, generator=rng).to(dtype)
        return found.double() if number in wide else found

    for number in range(STEPS):
        alpha = math.sqrt((number + 1) / (STEPS + 1))
        x, *values = (torch.randn(SHAPE, generator=rng).to(dtype) for _ in range(4))
        cond, uncond, used = (Prediction(x, value, alpha, math.sqrt(1 - alpha**2), kind) for value in values)
        uncond = uncond if number in guided else None
        yield SimpleNamespace(cond=cond, uncond=uncond, sample=made(number), cond_inputs={}), made(number), used


def expected(given):
    """The norms, one by one."""
    columns = {name: [] for name in ("delta", "z", "x0", "guidance", "drift", "information", "detail")}
    estimate = difference = None
    for step, latents, used in given:
        unknown = torch.full((len(latents),), torch.nan)
        guidance = unknown if step.uncond is None else norms(step.cond.value - step.uncond.value)
        here = log_snr(step.cond), (noise_scale(step.cond) * guidance) ** 2
        found = {
            "delta": norms(latents - step.sample),
            "z": norms(latents),
            "x0": norms(used.x0),
            "guidance": guidance,
            "drift": unknown if estimate is None else norms(step.cond.x0 - estimate),
            "information": gained(difference, here),
            "detail": detail(used.x0, {}),
        }
        estimate = step.cond.x0
        if difference is None or here[0] > difference[0]:
            difference = here
        for name, values in found.items():
            columns[name].append(values)
    return {name: torch.stack(values, dim=1) for name, values in columns.items()}


def recorded(given, *, ask=(), spoil=False):
    found = Norms()
    for number, (step, latents, used) in enumerate(given):
        found.add(step, latents, used)
        if spoil:
            for tensor in (latents, step.sample, step.cond.x, used.value, step.cond.value, step.uncond.value):
                tensor.data.fill_(torch.nan)
        if number in ask:
            found.columns()
    assert (len(found), found.images) == (STEPS, SHAPE[0])
    return found.columns()


@pytest.mark.parametrize("together", [0, 3 * 6 * 4 * math.prod(SHAPE), 2**30], ids=["alone", "some", "all"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"kind": "v_prediction"},
        {"kind": "sample"},
        {"kind": "flow_prediction"},
        {"dtype": torch.float16},
        {"dtype": torch.float64},
        {"guided": ()},
        {"guided": (0, 1, 2)},
        {"wide": (2, 3)},
    ],
    ids=str,
)
def test_norms_are_the_same_however_many_are_computed_together(settings, together, monkeypatch):
    monkeypatch.setattr(recording, "_BYTES", together)
    found, wanted = recorded(steps(**settings)), expected(steps(**settings))
    assert [*found] == [*wanted]
    for name, values in wanted.items():
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(found[name], values.float(), rtol=2e-6, atol=1e-6, equal_nan=True, msg=name)


def test_norms_may_be_asked_for_during_a_run():
    for name, values in recorded(steps(), ask=(0, 2, 3)).items():
        torch.testing.assert_close(values, recorded(steps())[name], equal_nan=True)


def test_what_is_written_into_the_tensors_of_a_step_afterwards_does_not_count():
    for name, values in recorded(steps(), spoil=True).items():
        torch.testing.assert_close(values, recorded(steps())[name], equal_nan=True)


def test_an_infinite_difference_is_part_of_its_own_evaluations_only():
    given = [*steps()]
    given[0][0].cond.value.fill_(torch.inf)
    found = recorded(given)["information"]
    assert found[:, 0].isinf().all()
    assert found[:, 2:].isfinite().all()
