"""Text-to-image on latents by rectified flow: stock classes in a `StableDiffusion3Pipeline` without its T5."""

# diffusers annotates its configurations as tuples of one element and refuses its own None
# pyright: reportArgumentType=false

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from cryptomnesia.pipelines.word_tokenizer import BOS, EOS, tokenizer
from cryptomnesia.proving_ground.autoencoder import MAX_TOKENS, LatentNetworks, latents
from cryptomnesia.proving_ground.learning import Batch, Inputs, Learner, half, layout

_TIMESTEPS = 1000

_MIDDLE = (0.25, 0.65)
"""Where the share of noise is that of the middle levels of SD's schedule."""

_EMPTY = 256
"""Tokens of zeros that the pipeline puts in the place of those of its T5."""


@dataclass(frozen=True)
class LatentFlow(LatentNetworks):
    """Autoencoder, text encoder and transformer, which predicts the velocity ε − x_0.

    The pipeline takes two text encoders. Both are the same one, which costs one evaluation in training.

    Attributes:
        heads: of attention, with 32 channels each.
        layers: of the transformer, over 8×8 tokens of the picture and those of the caption.
        width: of the text encoder.
    """

    heads: int = 4
    layers: int = 5
    width: int = 128

    def text_encoder(self, tokens: CLIPTokenizer) -> CLIPTextModelWithProjection:
        """Three layers, of which the pipeline reads the second for tokens, and the third for the pooled caption."""
        return CLIPTextModelWithProjection(
            CLIPTextConfig(
                vocab_size=len(tokens),
                hidden_size=self.width,
                intermediate_size=4 * self.width,
                projection_dim=self.width,
                num_hidden_layers=3,
                num_attention_heads=4,
                max_position_embeddings=MAX_TOKENS,
                bos_token_id=BOS,
                eos_token_id=EOS,
                pad_token_id=EOS,
            )
        )

    def transformer(self) -> SD3Transformer2DModel:
        """Patches of 2×2 latents and the tokens of the caption, in joint attention."""
        return SD3Transformer2DModel(
            sample_size=16,
            patch_size=2,
            in_channels=self.channels,
            out_channels=self.channels,
            num_layers=self.layers,
            attention_head_dim=32,
            num_attention_heads=self.heads,
            joint_attention_dim=2 * self.width,
            caption_projection_dim=32 * self.heads,
            pooled_projection_dim=2 * self.width,
            pos_embed_max_size=8,
        )

    def pipeline(
        self,
        vae: AutoencoderKL,
        text: CLIPTextModelWithProjection,
        tokens: CLIPTokenizer,
        denoiser: SD3Transformer2DModel,
    ) -> StableDiffusion3Pipeline:
        """The stock pipeline; its noise levels are not shifted, as latents of 16×16 do not need it."""
        # the pipeline adds it to the latents
        vae.register_to_config(shift_factor=0.0)
        return StableDiffusion3Pipeline(
            transformer=denoiser,
            scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=_TIMESTEPS, shift=1.0),
            vae=vae,
            text_encoder=text,
            tokenizer=tokens,
            text_encoder_2=text,
            tokenizer_2=tokens,
            text_encoder_3=None,
            tokenizer_3=None,
        )

    def learner(self, folder: Path, words: set[str]) -> Learner:
        """Transformer and text encoder; the autoencoder is read from `folder`/autoencoder and stays as it is."""
        return _FlowLearner(self, AutoencoderKL.from_pretrained(folder / "autoencoder"), tokenizer(words, MAX_TOKENS))


class _FlowLearner(Learner):
    """Transformer and text encoder learn to predict the velocity from noisy latents."""

    def __init__(self, networks: LatentFlow, vae: Any, tokens: CLIPTokenizer) -> None:
        self.networks, self.tokens = networks, tokens
        self.vae = vae.requires_grad_(False)
        transformer: Any = networks.transformer()
        transformer.set_attn_processor(_Attention())
        self.modules = {"transformer": transformer, "text": networks.text_encoder(tokens)}

    def to(self, device: torch.device) -> None:
        """Move all networks, the autoencoder as well."""
        super().to(device)
        self.vae.to(device, memory_format=layout(device))

    def inputs(self, batch: Batch) -> Inputs:
        """Pictures, timesteps 1 … 1000, noise (b, channels, 16, 16) and tokens (b, 32)."""
        times = batch.times(_TIMESTEPS, _MIDDLE)
        noise = batch.noise(self.networks.channels, 16, 16)
        tokens = self.tokens(batch.texts(times, _TIMESTEPS), padding="max_length", return_tensors="pt").input_ids
        return {"images": batch.images, "times": times + 1, "noise": noise, "tokens": tokens}

    def loss(self, inputs: Inputs) -> Tensor:
        """Mean square error of the velocity."""
        times, noise = inputs["times"], inputs["noise"]
        share = (times / _TIMESTEPS)[:, None, None, None]
        # only convolutions gain from half precision
        with torch.no_grad(), half(noise.device, self.networks.half):
            clean = latents(self.vae, inputs["images"]).float() * self.vae.config["scaling_factor"]
        noisy = (1 - share) * clean + share * noise
        predicted = self.modules["transformer"](noisy, *self.read(inputs["tokens"]), times, return_dict=False)[0]
        return (predicted - (noise - clean)).square().mean()

    def read(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Captions as the transformer reads them: tokens (b, 33, 2·width) and pooled captions (b, 2·width).

        The last token stands for those of the T5 that is left out.
        """
        found = self.modules["text"](tokens, output_hidden_states=True)
        text = torch.cat([found.hidden_states[-2]] * 2, dim=-1)
        pooled = torch.cat([found.text_embeds] * 2, dim=-1)
        return torch.cat([text, torch.zeros_like(text[:, :1])], dim=1), pooled

    def pipeline(self, modules: dict[str, Any]) -> StableDiffusion3Pipeline:
        """The stock pipeline with `modules` in the place of those that are trained."""
        return self.networks.pipeline(self.vae, modules["text"], self.tokens, modules["transformer"])


class _Attention:
    """Joint attention in which the last token of the text has the weight of `_EMPTY` tokens.

    The pipeline gives the transformer `_EMPTY` tokens of zeros behind the caption. They are alike in every layer, so
    one of them with the weight of all gives the same, and there are 97 tokens in the place of 352.
    """

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, attention_mask: None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Attend from all tokens to all: of the picture (B, n, C), and of the text (B, m, C)."""
        pairs = ((attn.to_q, attn.add_q_proj), (attn.to_k, attn.add_k_proj), (attn.to_v, attn.add_v_proj))
        tokens = [torch.cat([image(hidden_states), text(encoder_hidden_states)], dim=1) for image, text in pairs]
        query, key, value = (part.unflatten(2, (attn.heads, -1)).transpose(1, 2) for part in tokens)
        bias = query.new_zeros(key.shape[2], key.shape[2])
        bias[:, -1].fill_(math.log(_EMPTY))
        seen = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        sizes = hidden_states.shape[1], encoder_hidden_states.shape[1]
        picture, text = seen.transpose(1, 2).flatten(2).split(sizes, dim=1)
        return attn.to_out[0](picture), None if attn.context_pre_only else attn.to_add_out(text)
