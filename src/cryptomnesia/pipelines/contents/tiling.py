"""Whether an autoencoder decodes a picture in tiles, which blends it differently at their borders."""

from typing import Any

from cryptomnesia.pipelines.families import NetworkFamily, family_of
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
    factor, family = getattr(pipe, "vae_scale_factor", None), family_of(pipe)
    # a picture that is given may be of any size, and it may be the size of the one that is made
    if factor is None or not isinstance(family, NetworkFamily) or {"image", *family.pictures} & {*sampling.options}:
        return False
    native = family.native()
    longest = max(sampling.height or native[0], sampling.width or native[1])
    latent, pixels = getattr(vae, "tile_latent_min_size", None), getattr(vae, "tile_sample_min_size", None)
    return latent is not None and pixels is not None and 0 < longest <= pixels and longest // factor <= latent
