"""Miniatures of UNet pipelines."""

# diffusers annotates its configurations as tuples of one element and refuses its own None
# pyright: reportArgumentType=false

from typing import Any

import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    KolorsPipeline,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig, ChatGLMModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from cryptomnesia.testing.miniatures.parts import LONGEST, WIDTH, scheduler, text_config, tokens, unet, vae


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


def xl_unet(in_channels: int = 4, ids: int = 6) -> UNet2DConditionModel:
    """A UNet that also reads sizes, as that many numbers."""
    return unet(
        in_channels=in_channels,
        cross_attention_dim=2 * WIDTH,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=ids * 8 + WIDTH,
    )


def stable_diffusion_xl(*, refines: bool = False) -> StableDiffusionXLPipeline:
    """With both of its text encoders; as refiner, without the first one, and with five numbers in place of six."""
    torch.manual_seed(0)
    pipe = StableDiffusionXLPipeline(
        vae=vae(force_upcast=False),
        text_encoder=None if refines else CLIPTextModel(text_config()).eval(),
        text_encoder_2=CLIPTextModelWithProjection(text_config(2 * WIDTH if refines else WIDTH)).eval(),
        tokenizer=None if refines else tokens(),
        tokenizer_2=tokens(),
        unet=xl_unet(ids=5 if refines else 6).eval(),
        scheduler=scheduler(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def latent_consistency() -> LatentConsistencyModelPipeline:
    """A UNet that reads the guidance scale, and its own solver."""
    torch.manual_seed(0)
    pipe = LatentConsistencyModelPipeline(
        vae=vae(),
        text_encoder=CLIPTextModel(text_config()).eval(),
        tokenizer=tokens(),
        unet=unet(time_cond_proj_dim=8).eval(),
        scheduler=LCMScheduler(beta_end=0.025, original_inference_steps=50, set_alpha_to_one=True),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def kolors() -> KolorsPipeline:
    """With ChatGLM as text encoder."""
    torch.manual_seed(0)
    config = ChatGLMConfig(
        num_layers=2,
        padded_vocab_size=len(tokens()),
        hidden_size=WIDTH,
        ffn_hidden_size=37,
        kv_channels=8,
        num_attention_heads=4,
        seq_length=256,
        original_rope=True,
    )
    encoder = ChatGLMModel(config, empty_init=False)
    for name, weight in encoder.named_parameters():
        # it leaves these without a value
        if "norm" in name:
            torch.nn.init.ones_(weight)
    pipe = KolorsPipeline(
        vae=vae(force_upcast=False),
        text_encoder=encoder.eval(),
        tokenizer=_Positions(),
        unet=unet(
            cross_attention_dim=2 * WIDTH,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + WIDTH,
            encoder_hid_dim=WIDTH,
            encoder_hid_dim_type="text_proj",
        ).eval(),
        scheduler=scheduler(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


class _Positions:
    """The tokenizer of the miniatures, which also numbers the tokens as ChatGLM's does."""

    model_max_length = LONGEST

    def __call__(self, *texts: Any, **options: Any) -> Any:
        found = tokens()(*texts, **options)
        if "return_tensors" in options:
            found["position_ids"] = torch.arange(found["input_ids"].shape[1]).expand(found["input_ids"].shape)
        return found


def unconditional(kind: type[Any] = DDIMPipeline, *, learned_variance: bool = False) -> Any:
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
        out_channels=6 if learned_variance else 3,
    )
    variance = {"variance_type": "learned_range"} if learned_variance else {}
    made = {DDIMPipeline: DDIMScheduler, DDPMPipeline: DDPMScheduler}[kind](clip_sample=False, **variance)
    pipe = kind(unet=network.eval(), scheduler=made)
    pipe.set_progress_bar_config(disable=True)
    return pipe


FAMILIES = {
    "sd-epsilon": stable_diffusion,
    "sd-v": lambda: stable_diffusion("v_prediction"),
    "sdxl": stable_diffusion_xl,
}
"""UNet pipelines with batched guidance."""
