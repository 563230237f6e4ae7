"""What the miniatures are made of: a tokenizer, text encoders, an autoencoder, a UNet and a scheduler."""

# diffusers annotates its configurations as tuples of one element and refuses its own None
# pyright: reportArgumentType=false

import copy
from functools import cache
from typing import Any

from diffusers import AutoencoderKL, DDIMScheduler, FlowMatchEulerDiscreteScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig

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
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        sample_size=16,
        **{"latent_channels": 4, **more},
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
        out_channels=4,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        attention_head_dim=2,
        **{"in_channels": 4, "cross_attention_dim": WIDTH, **more},
    )


def language_config(**more: Any) -> dict[str, Any]:
    """Configuration of a language model with two layers."""
    return {
        "vocab_size": len(tokens()),
        "hidden_size": WIDTH,
        "intermediate_size": 37,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
        **more,
    }


def chatting(template: str) -> Any:
    """The tokenizer with a template of a chat."""
    made = copy.deepcopy(tokens())
    made.chat_template = template
    return made


def euler(**more: Any) -> FlowMatchEulerDiscreteScheduler:
    """The solver of rectified flow, by default with a shift that depends on the size."""
    return FlowMatchEulerDiscreteScheduler(**{"use_dynamic_shifting": True, **more})


def small(pipe: Any, side: int = 8) -> Any:
    """The pipeline, whose default pictures are small, and which shows no progress."""
    if hasattr(pipe, "default_sample_size"):
        pipe.default_sample_size = side
    pipe.set_progress_bar_config(disable=True)
    return pipe


def t5_config(kind: Any) -> Any:
    """Configuration of a T5 of the class `kind`, with one layer."""
    return kind(vocab_size=len(tokens()), d_model=WIDTH, d_kv=8, d_ff=37, num_layers=1, num_heads=4)
