"""Settings of the whole suite."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch

from cryptomnesia import Calibration
from cryptomnesia.proving_ground import BUNDLE
from tiny_pipelines import PROMPTS, SAMPLING, stable_diffusion

torch.set_num_threads(1)  # miniatures gain nothing from more, and a busy machine would stall them


@pytest.fixture(scope="session")
def pipe():
    """A miniature of Stable Diffusion that no test changes."""
    return stable_diffusion()


@pytest.fixture(scope="session")
def calibration():
    """Of `stable_diffusion()`."""
    return Calibration.fit(stable_diffusion(), PROMPTS, SAMPLING, batch_size=34)


def pytest_collection_modifyitems(items):
    """Leave out what needs the bundled model as long as it is being trained."""
    if (BUNDLE / "manifest.json").exists():
        return
    for item in items:
        if item.get_closest_marker("bundled"):
            item.add_marker(pytest.mark.skip(reason="the bundled model is still being trained"))
