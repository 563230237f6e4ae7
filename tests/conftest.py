"""Settings of the whole suite."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch

from cryptomnesia import Calibration
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
