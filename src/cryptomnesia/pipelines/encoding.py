"""From pictures to the latents that a denoiser sees: encoded, scaled, shifted and packed as the pipeline's own are."""

import copy
import inspect
from typing import Any

import torch
from torch import Tensor

from cryptomnesia.errors import NotFiniteError, UsageError

AUTOENCODERS = frozenset(
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


def check_encodable(pipe: Any) -> None:
    """Refuse a pipeline of which it is not known how it encodes pictures.

    Raises:
        UsageError: naming its autoencoder.
    """
    vae = getattr(pipe, "vae", None)
    if vae is not None and type(vae).__name__ not in AUTOENCODERS:
        raise UsageError(
            f"it is not known how a {type(vae).__name__} encodes pictures for a {type(pipe).__name__}; known are "
            f"{', '.join(sorted(AUTOENCODERS))}"
        )


@torch.no_grad()
def encoded(pipe: Any, pictures: Tensor, like: Tensor) -> Tensor:
    """Pictures as the denoiser of a pipeline sees them without noise.

    Args:
        pipe: a pipeline; one without an autoencoder sees pixels.
        pictures: (B, 3, H, W) in [0, 1].
        like: noisy samples that its network was given, (…, C, h, w), or (…, tokens, channels) where they are packed.

    Returns:
        (B, C, h, w) or (B, tokens, channels), with number format and device of `like`.

    Raises:
        UsageError: if they come out in another shape than those of `like`.
        NotFiniteError: if they are not finite.
    """
    found = 2 * pictures - 1
    if getattr(pipe, "vae", None) is not None:
        vae = encoder_of(pipe)
        found = latents_of(vae, found.to(pipe._execution_device, vae.dtype)).float()
        pipe.maybe_free_model_hooks()
    if like.dim() == 3:
        found = packed(pipe, found)
    if not found.isfinite().all():
        raise NotFiniteError("pictures become latents that are not finite; check the autoencoder's weights and dtype")
    if found.shape[1:] != like.shape[1:]:
        raise UsageError(
            f"pictures become latents of shape {tuple(found.shape[1:])}, and the network of the {type(pipe).__name__} "
            f"takes {tuple(like.shape[1:])}; give the height and width of the model's own pictures"
        )
    return found.to(like.device, like.dtype)


def encoder_of(pipe: Any) -> Any:
    """The autoencoder of a pipeline in a precision in which it can encode."""
    vae: Any = pipe.vae
    if vae.dtype == torch.float16 and getattr(vae.config, "force_upcast", False):
        # it overflows in half precision; other threads may be using the pipeline's own
        return copy.deepcopy(vae).float()
    return vae


def latents_of(vae: Any, pictures: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) in [-1, 1] as the latents that a denoiser sees, not packed, (B, C, h, w)."""
    return _scaled(vae, _encoded(vae, pictures))


def _encoded(vae: Any, picture: Tensor) -> Tensor:
    """What an autoencoder makes of pictures (B, 3, H, W), (B, C, h, w)."""
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


def packed(pipe: Any, latents: Tensor) -> Tensor:
    """Latents (B, C, h, w) as tokens, (B, tokens, channels)."""
    pack = pipe._pack_latents
    sizes = {"batch_size": len(latents)} | dict(
        zip(("num_channels_latents", "height", "width"), latents.shape[1:], strict=True)
    )
    return pack(latents, **{name: size for name, size in sizes.items() if name in inspect.signature(pack).parameters})
