"""Random miniature pipelines of the supported families, made from configurations alone."""

# diffusers annotates its configurations as tuples of one element and refuses its own None
# pyright: reportArgumentType=false

from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from diffusers.configuration_utils import FrozenDict
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from cryptomnesia import Sampling
from cryptomnesia.pipelines.word_tokenizer import BOS, EOS, tokenizer

WIDTH = 32
"""Numbers of a token's embedding."""
LONGEST = 32
"""Tokens of a caption."""
WORDS = (
    "a and arch bar black blue checked circle cross disc dotted ground green grey half heart in of on orange pink "
    "plain purple red ring small square star striped the triangle white wide yellow"
)
"""Words that are one token."""
SAMPLING = Sampling(steps=3, guidance=2.0)
CALL = {"num_inference_steps": 3, "guidance_scale": 2.0}
"""The same as arguments of a call."""
PROMPTS = [f"a red circle {number}" for number in range(102)]
TRUE_GUIDANCE = {"true_cfg_scale": 2.0, "negative_prompt": "a blue star"}
"""Options of Flux."""


@cache
def tokens() -> Any:
    """The tokenizer of all miniatures."""
    return tokenizer(WORDS.split(), LONGEST)


def scheduler(prediction: str = "epsilon") -> DDIMScheduler:
    """DDIM on a schedule that ends darker than Stable Diffusion's own, as v-prediction needs."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.025,
        prediction_type=prediction,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def vae(**more: Any) -> AutoencoderKL:
    """16×16 pixels to 8×8 latents and back."""
    return AutoencoderKL(
        **more,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=4,
        sample_size=16,
    )


def text_config(width: int = WIDTH) -> CLIPTextConfig:
    """Two layers of that width."""
    return CLIPTextConfig(
        vocab_size=len(tokens()),
        hidden_size=width,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=LONGEST,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=EOS,
        projection_dim=WIDTH,
    )


def unet(**more: Any) -> UNet2DConditionModel:
    """Two levels with cross-attention, 8×8 latents."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        attention_head_dim=2,
        **{"cross_attention_dim": WIDTH, **more},
    )


def stable_diffusion(prediction: str = "epsilon") -> StableDiffusionPipeline:
    """SD 1 (ε) or SD 2 (v-prediction)."""
    torch.manual_seed(0)
    pipe = StableDiffusionPipeline(
        vae=vae(),
        text_encoder=CLIPTextModel(text_config()).eval(),
        tokenizer=tokens(),
        unet=unet().eval(),
        scheduler=scheduler(prediction),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def stable_diffusion_xl() -> StableDiffusionXLPipeline:
    """With both of its text encoders."""
    torch.manual_seed(0)
    pipe = StableDiffusionXLPipeline(
        vae=vae(),
        text_encoder=CLIPTextModel(text_config()).eval(),
        text_encoder_2=CLIPTextModelWithProjection(text_config()).eval(),
        tokenizer=tokens(),
        tokenizer_2=tokens(),
        unet=unet(
            cross_attention_dim=2 * WIDTH,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + WIDTH,
        ).eval(),
        scheduler=scheduler(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def stable_diffusion_3() -> StableDiffusion3Pipeline:
    """Without its third text encoder, as it may be used."""
    torch.manual_seed(0)
    pipe = StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=4,
            joint_attention_dim=2 * WIDTH,
            caption_projection_dim=32,
            pooled_projection_dim=2 * WIDTH,
            pos_embed_max_size=8,
        ).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(shift_factor=0.06),
        text_encoder=CLIPTextModelWithProjection(text_config()).eval(),
        tokenizer=tokens(),
        text_encoder_2=CLIPTextModelWithProjection(text_config()).eval(),
        tokenizer_2=tokens(),
        text_encoder_3=None,
        tokenizer_3=None,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def flux() -> FluxPipeline:
    """Guidance-distilled; its T5 encoder reads the words of the miniatures' tokenizer."""
    torch.manual_seed(0)
    pipe = FluxPipeline(
        transformer=FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            pooled_projection_dim=WIDTH,
            guidance_embeds=True,
            axes_dims_rope=(4, 4, 8),
        ).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae(shift_factor=0.06),
        text_encoder=CLIPTextModel(text_config()).eval(),
        tokenizer=tokens(),
        text_encoder_2=T5EncoderModel(
            T5Config(vocab_size=len(tokens()), d_model=WIDTH, d_kv=8, d_ff=37, num_layers=1, num_heads=4)
        ).eval(),
        tokenizer_2=tokens(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def unconditional(kind: type[Any] = DDIMPipeline) -> Any:
    """A pixel-space model without captions, whose scheduler does not clip."""
    torch.manual_seed(0)
    network = UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=4,
    )
    made = {DDIMPipeline: DDIMScheduler, DDPMPipeline: DDPMScheduler}[kind](clip_sample=False)
    pipe = kind(unet=network.eval(), scheduler=made)
    pipe.set_progress_bar_config(disable=True)
    return pipe


FAMILIES = {
    "sd-epsilon": stable_diffusion,
    "sd-v": lambda: stable_diffusion("v_prediction"),
    "sdxl": stable_diffusion_xl,
}
"""UNet pipelines with batched guidance."""


class OracleUNet(torch.nn.Module):
    """A closed-form denoiser in the place of a UNet; the condition is the first number of the text embedding."""

    def __init__(self, oracle: Any, channels: int, side: int) -> None:
        """An oracle of latents (B, channels, side, side)."""
        super().__init__()
        self.oracle = oracle
        self.config = FrozenDict(in_channels=channels, sample_size=side, time_cond_proj_dim=None)
        self.dtype, self.device = torch.float32, torch.device("cpu")

    def forward(self, x: Any, t: Any, encoder_hidden_states: Any = None, **_: Any) -> Any:
        """What the oracle predicts, as a tuple of one."""
        which = {"which": encoder_hidden_states[:, 0, 0].round().long()}
        return (self.oracle(x, t, which).value,)


def oracle_pipeline(oracle: Any, channels: int = 1, side: int = 4) -> StableDiffusionPipeline:
    """The stock SD pipeline around an oracle, on SD's own schedule."""
    pipe = stable_diffusion()
    pipe.register_modules(
        unet=OracleUNet(oracle, channels, side),
        scheduler=DDIMScheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
    )
    return pipe


class KeywordEncoder(torch.nn.Module):
    """A text encoder that tells an `OracleUNet` one thing: condition 1 if a word is in the prompt, else 0."""

    def __init__(self, word: str) -> None:
        """Take one of `WORDS`."""
        super().__init__()
        self.token = tokens().convert_tokens_to_ids(f"{word}</w>")
        self.config = SimpleNamespace()
        self.dtype, self.device = torch.float32, torch.device("cpu")

    def forward(self, ids: Any, attention_mask: Any = None) -> Any:
        """An embedding of one token per caption, as a tuple of one."""
        embeds = torch.zeros(len(ids), 1, WIDTH)
        embeds[:, 0, 0] = (ids == self.token).any(dim=1).float()
        return (embeds,)


def call_oracle(pipe: Any, which: int, seeds: range, steps: int = 20, guidance: float = 1.01, baseline: int = 0) -> Any:
    """Latents of one generation per seed under condition `which`, guided against condition `baseline`."""
    embeds = torch.full((len(seeds), 1, WIDTH), float(which))
    side = pipe.unet.config.sample_size
    return pipe(
        prompt_embeds=embeds,
        negative_prompt_embeds=torch.full_like(embeds, float(baseline)),
        latents=torch.stack(
            [
                torch.randn((pipe.unet.config.in_channels, side, side), generator=torch.Generator().manual_seed(seed))
                for seed in seeds
            ]
        ),
        num_inference_steps=steps,
        guidance_scale=guidance,
        output_type="latent",
    ).images
