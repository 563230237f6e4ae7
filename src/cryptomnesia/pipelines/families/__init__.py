"""One adapter per model family; `adapter_for` picks it from an allow-list."""

from cryptomnesia.errors import UsageError
from cryptomnesia.pipelines.families.base import Adapter, Branch, Evaluation, Shared
from cryptomnesia.pipelines.families.flux import FluxAdapter
from cryptomnesia.pipelines.families.sd3 import SD3Adapter
from cryptomnesia.pipelines.families.unconditional import UnconditionalAdapter
from cryptomnesia.pipelines.families.unet import UNetAdapter

__all__ = ["FAMILIES", "Adapter", "Branch", "Evaluation", "Shared", "adapter_for"]

FAMILIES: dict[str, type[UNetAdapter | UnconditionalAdapter | SD3Adapter | FluxAdapter]] = {
    "StableDiffusionPipeline": UNetAdapter,
    "StableDiffusionXLPipeline": UNetAdapter,
    "StableDiffusion3Pipeline": SD3Adapter,
    "FluxPipeline": FluxAdapter,
    "DDPMPipeline": UnconditionalAdapter,
    "DDIMPipeline": UnconditionalAdapter,
}
"""Pipeline class → adapter. The exact class is asked for: a subclass may order its branches differently."""


def adapter_for(pipe: object) -> Adapter:
    """The adapter of a pipeline's family.

    Raises:
        UsageError: for a pipeline whose layout of guidance branches is not known.
    """
    name = type(pipe).__name__
    if name not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise UsageError(f"got a pipeline of the unknown family {name}; known are {known}")
    return FAMILIES[name](pipe)
