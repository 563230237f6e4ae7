"""Random miniature pipelines of the supported families, made from configurations alone."""

from cryptomnesia.testing.miniatures.flows import flux, stable_diffusion_3
from cryptomnesia.testing.miniatures.oracle import KeywordEncoder, OracleUNet, call_oracle, oracle_pipeline
from cryptomnesia.testing.miniatures.parts import (
    CALL,
    LONGEST,
    PROMPTS,
    SAMPLING,
    TRUE_GUIDANCE,
    WIDTH,
    WORDS,
    tokens,
    unet,
)
from cryptomnesia.testing.miniatures.unets import FAMILIES, stable_diffusion, stable_diffusion_xl, unconditional

__all__ = [
    "CALL",
    "FAMILIES",
    "LONGEST",
    "PROMPTS",
    "SAMPLING",
    "TRUE_GUIDANCE",
    "WIDTH",
    "WORDS",
    "KeywordEncoder",
    "OracleUNet",
    "call_oracle",
    "flux",
    "oracle_pipeline",
    "stable_diffusion",
    "stable_diffusion_3",
    "stable_diffusion_xl",
    "tokens",
    "unconditional",
    "unet",
]
