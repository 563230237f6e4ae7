"""One adapter per model family; `adapter_for` picks it from an allow-list."""

from cryptomnesia.adapters.unet import Adapter, Branch, UNetAdapter, UNetDenoiser
from cryptomnesia.errors import UsageError

__all__ = ["Adapter", "Branch", "UNetAdapter", "UNetDenoiser", "adapter_for"]

FAMILIES: dict[str, type[UNetAdapter]] = {
    "StableDiffusionPipeline": UNetAdapter,
    "StableDiffusionXLPipeline": UNetAdapter,
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
