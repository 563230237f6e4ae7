"""What models on latents have in common: an autoencoder of stock classes, which is trained before the denoiser."""

# diffusers annotates its configurations as tuples of one element and refuses its own None
# pyright: reportArgumentType=false

from dataclasses import dataclass
from typing import Any

from diffusers import AutoencoderKL
from torch import Tensor

from cryptomnesia.proving_ground.learning import Networks, to_unit

SIDE = 64
"""Side of the pictures in pixels."""

MAX_TOKENS = 32
"""Length of the text input; the longest caption of the grounds takes 31."""


@dataclass(frozen=True)
class LatentNetworks(Networks):
    """The autoencoder of models on latents.

    Attributes:
        channels: of the latents, which are 16×16.
        autoencoder_widths: channels of the autoencoder at 64×64, 32×32 and 16×16.
        kl: weight of the latents' KL divergence in the autoencoder's loss.
        half: whether convolutions are computed in bfloat16 in training.
    """

    channels: int = 4
    autoencoder_widths: tuple[int, int, int] = (16, 32, 64)
    kl: float = 1e-6
    half: bool = False

    autoencoder = True

    def vae(self) -> AutoencoderKL:
        """64×64×3 pixels to latents and back."""
        return AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=self.autoencoder_widths,
            layers_per_block=1,
            latent_channels=self.channels,
            norm_num_groups=8,
            mid_block_add_attention=False,
            sample_size=SIDE,
        )


def latents(vae: Any, images: Tensor) -> Tensor:
    """Latents of images (B, 3, H, W) uint8, not scaled."""
    return vae.encode(to_unit(images)).latent_dist.mode()
