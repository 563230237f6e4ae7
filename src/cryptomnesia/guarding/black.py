"""Latents that decode to a black picture: what a call that returns latents gets in place of a withheld image.

Latents of zero decode to grey. So a black picture is encoded with the pipeline's own autoencoder, and then scaled,
shifted and packed as the pipeline's latents are.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cryptomnesia.errors import UsageError
from cryptomnesia.pipelines.call import defaults_of
from cryptomnesia.pipelines.encoding import AUTOENCODERS, encoder_of, latents_of, packed


def returns_latents(pipe: Any, arguments: Mapping[str, Any]) -> bool:
    """Whether a call returns latents; a pipeline without an autoencoder returns pictures whatever is asked for."""
    wanted = arguments.get("output_type", defaults_of(pipe).get("output_type"))
    return wanted == "latent" and getattr(pipe, "vae", None) is not None


def check_black(pipe: Any) -> None:
    """Refuse a pipeline whose latents of a black picture are not known.

    Raises:
        UsageError: naming its autoencoder.
    """
    name = type(pipe.vae).__name__
    if name not in AUTOENCODERS:
        raise UsageError(
            f"got output_type='latent' under a guard that withholds images, and it is not known which latents of the "
            f"{name} are black; ask for 'pil', 'np' or 'pt', or use the policy observe"
        )


@torch.no_grad()
def black_latents(pipe: Any, like: Tensor, arguments: Mapping[str, Any]) -> Tensor:
    """The latents of a black picture.

    Args:
        pipe: the pipeline whose call made `like`.
        like: latents of one image, (C, h, w), or (tokens, channels) where they are packed.
        arguments: of the call.

    Returns:
        Latents with shape, number format and device of `like`.

    Raises:
        UsageError: if the latents come out in another shape, or are not finite.
    """
    vae = encoder_of(pipe)
    height, width = _size(pipe, like, arguments)
    picture = -torch.ones(1, 3, height, width, dtype=vae.dtype, device=pipe._execution_device)
    latents = latents_of(vae, picture).float()
    fitting = packed(pipe, latents) if like.dim() == 2 else latents
    # offloaded networks go back to where they wait
    pipe.maybe_free_model_hooks()
    if fitting.shape[1:] != like.shape or not fitting.isfinite().all():
        raise UsageError(
            f"an image is withheld, and its latents of shape {tuple(like.shape)} cannot be made black; ask for the "
            "output type 'pil', 'np' or 'pt'"
        )
    return fitting[0].to(like.device, like.dtype)


def _size(pipe: Any, like: Tensor, arguments: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width in pixels of the picture that latents decode to."""
    scale = pipe.vae_scale_factor
    if like.dim() > 2:
        return like.shape[-2] * scale, like.shape[-1] * scale
    native = pipe.default_sample_size * scale
    # pixels that make no whole token are left out
    height, width = (int(arguments.get(side) or native) // (2 * scale) * 2 * scale for side in ("height", "width"))
    return height, width
