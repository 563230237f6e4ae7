import pytest

from cryptomnesia import watch
from cryptomnesia.testing.miniatures import call_oracle, oracle_pipeline
from mapped_runs import gaussian, view


@pytest.fixture(scope="session")
def gaussian_run():
    """(trajectory, denoiser) of three images of the Gaussian."""
    pipe = oracle_pipeline(gaussian())
    with watch(pipe, keep="all") as seen:
        call_oracle(pipe, which=1, seeds=range(3), steps=50)
    return seen.trajectory, view(pipe)
