"""Text-to-image on latents with a UNet: stock classes with small configurations, in a `StableDiffusionPipeline`."""

# diffusers annotates its configurations as tuples of one element and refuses its own None
# pyright: reportArgumentType=false

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from cryptomnesia.pipelines.word_tokenizer import BOS, EOS, tokenizer
from cryptomnesia.proving_ground.autoencoder import MAX_TOKENS, LatentNetworks, latents
from cryptomnesia.proving_ground.learning import Batch, Inputs, Learner, half, layout


@dataclass(frozen=True)
class LatentText(LatentNetworks):
    """Autoencoder, text encoder and UNet, which predicts v.

    The pooled caption is also added to the time embedding, as in SDXL. In so small a network, which knows where things
    are only at its bottleneck, names are bound to layouts about twice as fast that way.

    The noise schedule is SD's at its clean end, where maps are read, but darker at its noisy end. SD's own schedule
    ends at √ᾱ_T = .07. The mean of the initial noise over a 16×16 latent is of that order, so with SD's schedule the
    colour of a picture would follow the noise, and planted colours would drift. At a dark end ε is nearly x itself: an
    ε-predictor of this size had learned nothing of its captions after 1,000 steps, because an error in ε is 160 times
    as large in x̂_0 there. So the network predicts v, as SD 2 does.

    Attributes:
        widths: channels of the UNet at 16×16, 8×8 and 4×4.
        beta_end: of the noise schedule.
    """

    widths: tuple[int, int, int] = (32, 64, 128)
    beta_end: float = 0.025

    @property
    def noise_schedule(self) -> dict[str, Any]:
        """Arguments of a scheduler."""
        return {
            "num_train_timesteps": 1000,
            "beta_schedule": "scaled_linear",
            "beta_start": 0.00085,
            "beta_end": self.beta_end,
            "prediction_type": "v_prediction",
        }

    def text_encoder(self, tokens: CLIPTokenizer) -> CLIPTextModel:
        """Two transformer layers of width 128."""
        return CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokens),
                hidden_size=128,
                intermediate_size=512,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=MAX_TOKENS,
                bos_token_id=BOS,
                eos_token_id=EOS,
                pad_token_id=EOS,
            )
        )

    def unet(self) -> UNet2DConditionModel:
        """Cross-attention on the way down at 16×16 and 8×8, at 4×4, and up at 8×8."""
        return UNet2DConditionModel(
            sample_size=16,
            in_channels=self.channels,
            out_channels=self.channels,
            block_out_channels=self.widths,
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            only_cross_attention=(True, False, False),
            layers_per_block=1,
            norm_num_groups=16,
            attention_head_dim=4,
            cross_attention_dim=128,
            addition_embed_type="text",
            addition_embed_type_num_heads=4,
        )

    def pipeline(
        self, vae: AutoencoderKL, text: CLIPTextModel, tokens: CLIPTokenizer, denoiser: UNet2DConditionModel
    ) -> StableDiffusionPipeline:
        """The stock pipeline, with PNDM as its scheduler as SD 1.4 has it."""
        scheduler = PNDMScheduler(**self.noise_schedule, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1)
        # for schedulers that are made from this configuration: DDIM would otherwise clip x̂_0 to ±1
        scheduler.register_to_config(clip_sample=False)
        return StableDiffusionPipeline(
            vae=vae,
            text_encoder=text,
            tokenizer=tokens,
            unet=denoiser,
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )

    def learner(self, folder: Path, words: set[str]) -> Learner:
        """UNet and text encoder; the autoencoder is read from `folder`/autoencoder and stays as it is."""
        vae, tokens = AutoencoderKL.from_pretrained(folder / "autoencoder"), tokenizer(words, MAX_TOKENS)
        return TextLearner(self, vae, tokens, {"unet": self.unet(), "text": self.text_encoder(tokens)})


class TextLearner(Learner):
    """A UNet learns to predict v from noisy latents, and so does its text encoder unless it is `fixed`."""

    def __init__(
        self,
        networks: LatentText,
        vae: Any,
        tokens: CLIPTokenizer,
        modules: dict[str, Any],
        fixed: CLIPTextModel | None = None,
    ) -> None:
        """Train `modules`: `unet`, and `text` if no text encoder is `fixed`."""
        self.networks, self.tokens, self.modules = networks, tokens, modules
        self.vae = vae.requires_grad_(False)
        self.text: Any = modules["text"] if fixed is None else fixed.requires_grad_(False)
        # as a scheduler that adds noise and knows the velocity v
        self.schedule: Any = DDIMScheduler(**networks.noise_schedule)

    def to(self, device: torch.device) -> None:
        """Move the networks, and choose how they attend there."""
        super().to(device)
        self.vae.to(device, memory_format=layout(device))
        self.text.to(device)
        if device.type == "cpu":
            # for so few tokens products of matrices are faster than PyTorch's fused attention: a quarter of a step
            self.modules["unet"].set_attn_processor(AttnProcessor())
            self.text.set_attn_implementation("eager")

    def inputs(self, batch: Batch) -> Inputs:
        """Pictures, timesteps, noise (b, channels, 16, 16) and tokens (b, 32)."""
        count = len(self.schedule.alphas_cumprod)
        times = batch.times(count)
        noise = batch.noise(self.networks.channels, 16, 16)
        tokens = self.tokens(batch.texts(times, count), padding="max_length", return_tensors="pt").input_ids
        return {"images": batch.images, "times": times, "noise": noise, "tokens": tokens}

    def loss(self, inputs: Inputs) -> Tensor:
        """Mean square error of v."""
        times, noise = inputs["times"], inputs["noise"]
        with half(noise.device, self.networks.half):
            with torch.no_grad():
                clean = latents(self.vae, inputs["images"]).float() * self.vae.config["scaling_factor"]
            noisy = self.schedule.add_noise(clean, noise, times).contiguous(memory_format=layout(noise.device))
            text = self.text(inputs["tokens"])[0]
            predicted = self.modules["unet"](noisy, times, text, return_dict=False)[0]
        return (predicted.float() - self.schedule.get_velocity(clean, noise, times)).square().mean()

    def pipeline(self, modules: dict[str, Any]) -> StableDiffusionPipeline:
        """The stock pipeline with `modules` in the place of those that are trained."""
        return self.networks.pipeline(self.vae, modules.get("text", self.text), self.tokens, modules["unet"])
