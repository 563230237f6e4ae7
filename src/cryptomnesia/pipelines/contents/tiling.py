"""Whether an autoencoder decodes a picture in tiles, which blends it differently at their borders."""

from typing import Any

from cryptomnesia.settings import Sampling


def tiles(pipe: Any, sampling: Sampling) -> frozenset[str]:
    """Names of the autoencoders that would decode or encode pictures of this size in tiles."""
    return frozenset(
        name
        for name, part in pipe.components.items()
        if getattr(part, "use_tiling", False) and not _in_one(pipe, part, sampling)
    )


def _in_one(pipe: Any, vae: Any, sampling: Sampling) -> bool:
    """Whether a picture is known to fit into one tile."""
    factor = getattr(pipe, "vae_scale_factor", None)
    denoiser = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
    native = getattr(pipe, "default_sample_size", None) or getattr(
        getattr(denoiser, "config", None), "sample_size", None
    )
    if factor is None or not isinstance(native, int):
        return False
    height, width = sampling.height or native * factor, sampling.width or native * factor
    latent, pixels = getattr(vae, "tile_latent_min_size", None), getattr(vae, "tile_sample_min_size", None)
    if latent is None or pixels is None:
        return False
    return max(height, width) <= pixels and max(height, width) // factor <= latent
