import pytest

from cryptomnesia import detect
from cryptomnesia.testing.miniatures import CALL, stable_diffusion


@pytest.fixture
def pipe():
    """A miniature of Stable Diffusion that the test may change."""
    return stable_diffusion()


@pytest.fixture(scope="session")
def scores(calibration):
    """Drift of seeds 0 … 7 of one caption."""
    prompts = ["a red circle"] * 8
    found = detect(stable_diffusion(), prompts, seeds=range(8), calibration=calibration, fpr=0.5, **CALL)
    return [finding.verdict.score for finding in found]
