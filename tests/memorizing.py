"""A closed-form memorizer behind a stock pipeline."""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from cryptomnesia import Calibration, calibrate
from cryptomnesia.testing.miniatures import KeywordEncoder, oracle_pipeline
from cryptomnesia.testing.oracles import FiniteSet

CALL = {"num_inference_steps": 20, "guidance_scale": 1.01}
"""Arguments of every call."""


@cache
def memorizer() -> tuple[Any, Calibration, Tensor]:
    """(pipe, calibration, image): the word "ring" brings the image back, other captions give one of many others."""
    generator = torch.Generator().manual_seed(0)
    planted = 2.5 * torch.randn((1, 4, 4, 4), generator=generator)
    pipe = oracle_pipeline(FiniteSet((torch.randn((64, 4, 4, 4), generator=generator), planted)), channels=4)
    pipe.text_encoder = KeywordEncoder("ring")
    references = [f"a red circle {number}" for number in range(150)]
    return pipe, calibrate(pipe, references, detectors=["collapse"], batch_size=50, **CALL), planted
