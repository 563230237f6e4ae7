"""Latents that decode to a black picture: what a call that returns latents gets in place of a withheld image.

Latents of zero decode to grey. So a black picture is encoded with the pipeline's own autoencoder, and then scaled,
shifted and packed as the pipeline's latents are.
"""

import copy
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cryptomnesia.errors import UsageError
from cryptomnesia.pipelines.call import defaults_of

_AUTOENCODERS = frozenset(
    {
        "AutoencoderKL",
        "AsymmetricAutoencoderKL",
        "AutoencoderTiny",
        "AutoencoderDC",
        "AutoencoderKLQwenImage",
        "AutoencoderKLFlux2",
    }
)
"""Classes of autoencoders whose latents the pipelines of diffusers scale, shift and pack as is done here."""


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
    if name not in _AUTOENCODERS:
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
    vae: Any = pipe.vae
    if vae.dtype == torch.float16 and getattr(vae.config, "force_upcast", False):
        # it overflows in half precision; other threads may be using the pipeline's own
        vae = copy.deepcopy(vae).float()
    height, width = _size(pipe, like, arguments)
    picture = -torch.ones(1, 3, height, width, dtype=vae.dtype, device=pipe._execution_device)
    latents = latents_of(vae, picture).float()
    packed = _packed(pipe, latents) if like.dim() == 2 else latents
    # offloaded networks go back to where they wait
    pipe.maybe_free_model_hooks()
    if packed.shape[1:] != like.shape or not packed.isfinite().all():
        raise UsageError(
            f"an image is withheld, and its latents of shape {tuple(like.shape)} cannot be made black; ask for the "
            "output type 'pil', 'np' or 'pt'"
        )
    return packed[0].to(like.device, like.dtype)


def _size(pipe: Any, like: Tensor, arguments: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width in pixels of the picture that latents decode to."""
    scale = pipe.vae_scale_factor
    if like.dim() > 2:
        return like.shape[-2] * scale, like.shape[-1] * scale
    native = pipe.default_sample_size * scale
    # pixels that make no whole token are left out
    height, width = (int(arguments.get(side) or native) // (2 * scale) * 2 * scale for side in ("height", "width"))
    return height, width


def latents_of(vae: Any, pictures: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) in [-1, 1] as the latents that a denoiser sees, not packed, (B, C, h, w)."""
    return _scaled(vae, _encoded(vae, pictures))


def _encoded(vae: Any, picture: Tensor) -> Tensor:
    """What an autoencoder makes of a picture (1, 3, H, W), (1, C, h, w)."""
    video = type(vae).__name__ == "AutoencoderKLQwenImage"
    encoded = vae.encode(picture[:, :, None] if video else picture)
    if hasattr(encoded, "latent_dist"):
        found = encoded.latent_dist.mode()
    else:
        found = encoded.latents if hasattr(encoded, "latents") else encoded.latent
    return found[:, :, 0] if video else found


def _scaled(vae: Any, latents: Tensor) -> Tensor:
    """Latents of an autoencoder as the denoiser sees them; those of Flux 2 become patches of four."""
    config = vae.config
    if hasattr(vae, "bn"):
        patches = torch.nn.functional.pixel_unshuffle(latents, 2)
        mean, variance = (values.view(1, -1, 1, 1) for values in (vae.bn.running_mean, vae.bn.running_var))
        return (patches - mean) / (variance + config.batch_norm_eps).sqrt()
    scale = getattr(config, "scaling_factor", None) or 1.0
    mean, deviation = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    if mean is not None and deviation is not None:
        mean, deviation = (latents.new_tensor(values).view(1, -1, 1, 1) for values in (mean, deviation))
        return (latents - mean) * scale / deviation
    return (latents - (getattr(config, "shift_factor", None) or 0.0)) * scale


def _packed(pipe: Any, latents: Tensor) -> Tensor:
    """Latents (1, C, h, w) as tokens, (1, tokens, channels)."""
    pack = pipe._pack_latents
    sizes = {"batch_size": 1} | dict(zip(("num_channels_latents", "height", "width"), latents.shape[1:], strict=True))
    return pack(latents, **{name: size for name, size in sizes.items() if name in inspect.signature(pack).parameters})
