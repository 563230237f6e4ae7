"""What holds for every detector, and how detectors are found."""

import pytest
import torch

from cryptomnesia import Drift, EarlyDetail, GuidanceMagnitude, Stability, StabilityOrDrift, UsageError, watch
from cryptomnesia.detectors import MapMean, detector, detector_names, free_detectors
from cryptomnesia.detectors.combined import Combined
from cryptomnesia.detectors.information import Information
from cryptomnesia.detectors.map_mean import during_run
from cryptomnesia.detectors.stability import StabilityFirst
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.registry import create, entries
from cryptomnesia.statistics import auc
from cryptomnesia.testing.miniatures import (
    SAMPLING,
    TRUE_GUIDANCE,
    call_oracle,
    flux,
    oracle_pipeline,
    stable_diffusion_xl,
    unconditional,
)
from cryptomnesia.testing.oracles import FiniteSet, Gaussian

LOCALIZERS = [found for name in entries("localizer") if during_run(found := create("localizer", name))]
ELSEWHERE = {
    "anisotropy",
    "attention-entropy",
    "attention-entropy-late",
    "base-difference",  # has closed forms of its own, in test_base_difference.py
    "bright-ending",
    "condition-jacobian",
    "overestimation",
    "spikiness",
}
"""Detectors to which the closed forms do not apply: tests/testing/test_checks.py says why."""
DETECTORS = [*sorted(entries("detector").keys() - ELSEWHERE), *(localizer.name for localizer in LOCALIZERS)]


@pytest.fixture(scope="module")
def oracle_runs():
    """Trajectories of a Gaussian, a single planted image, and a Gaussian that is nearly one, with two baselines."""
    torch.manual_seed(0)
    size = 16
    wide = torch.ones(size, dtype=torch.float64)
    gaussian = Gaussian(
        mean=torch.stack([torch.zeros(size), 0.3 * torch.randn(size)]).double(),
        basis=torch.eye(size, dtype=torch.float64).repeat(2, 1, 1),
        variances=torch.stack([wide, 0.8 * wide]),
    )
    planted = 1.5 * torch.randn(1, 1, 4, 4)
    memorizer = FiniteSet((torch.randn(64, 1, 4, 4), planted))
    narrow = Gaussian(
        mean=torch.stack([torch.zeros(size), planted.flatten()]).double(),
        basis=gaussian.basis,
        variances=torch.stack([wide, 1e-4 * wide]),
    )
    runs = []
    for oracle in (gaussian, memorizer, narrow):
        pipe = oracle_pipeline(oracle)
        found = [detector(name) for name in DETECTORS]
        norms = [norm for one in found for norm in one.norms]
        with watch(pipe, norms=norms, signals=[signal for one in found for signal in one.signals]) as seen:
            latents = call_oracle(pipe, which=1, seeds=range(60))
        runs.append(seen.trajectory)
    torch.testing.assert_close(latents[:4], planted.expand(4, -1, -1, -1), atol=0.5, rtol=0)
    return runs


@pytest.mark.parametrize("name", DETECTORS)
def test_every_detector_separates_the_oracles(name, oracle_runs):
    ordinary, memorized, narrow = oracle_runs
    if name == "curvature-difference":
        # late in the run one of a finite set of pictures is certain without the caption, too
        memorized = narrow
    references = ordinary.rows([*range(30)])
    found = detector(name)
    assert found.name == name
    low = found.score(ordinary.rows([*range(30, 60)]), references).numpy()
    assert auc(found.score(memorized, references).numpy(), low) > 0.95


def test_a_detector_is_found_by_name_by_class_and_as_an_object(pipe):
    setup = Setup(pipe, SAMPLING)
    assert detector("drift") == detector(Drift) == Drift()
    assert detector(given := Drift(less=2.0)) is given
    assert isinstance(detector("collapse"), MapMean)
    assert detector("auto", setup) == EarlyDetail()
    maps = [name for name in entries("localizer") if name != "bright-ending"]
    assert detector_names() == [*entries("detector"), *maps]
    with pytest.raises(UsageError, match=r"unknown detector 'tarot'; known are anisotropy, .*, drift, .*, collapse"):
        detector("tarot")
    with pytest.raises(UsageError, match="got the detector 'auto' without a set-up"):
        detector("auto")


def test_what_is_free_is_found_for_every_set_up(pipe):
    always = {Drift(), EarlyDetail(), Stability(), StabilityFirst(), StabilityOrDrift()}
    guided = {
        Combined(),
        Information(),
        GuidanceMagnitude("first"),
        GuidanceMagnitude("mean"),
        GuidanceMagnitude("last"),
    }
    assert {*free_detectors(Setup.of(pipe, {}))} == always | guided
    assert {*free_detectors(Setup.of(pipe, {"guidance_scale": 1.0}))} == always
    assert {*free_detectors(Setup.of(stable_diffusion_xl(), {}))} == always | guided
    assert {*free_detectors(Setup.of(flux(), {}))} == always
    assert {*free_detectors(Setup.of(flux(), TRUE_GUIDANCE))} == always | guided
    # without captions all pictures have the same mean
    assert {*free_detectors(Setup.of(unconditional(), {}))} == always - {EarlyDetail()}


@pytest.mark.parametrize("name", DETECTORS)
def test_every_detector_says_what_it_is(name, pipe):
    found = detector(name)
    for text in (found.summary, found.source, found.use_when, found.avoid_when, found.describe()):
        assert isinstance(text, str)
        assert text.strip()
    assert found.reads
    assert found.earliest(50) >= 1
    assert found.cost(Setup(pipe, SAMPLING)) >= 0
