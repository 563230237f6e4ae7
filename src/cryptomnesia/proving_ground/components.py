"""The untrained parts of the bundled pipeline: stock classes with small configurations."""

# diffusers annotates its configurations as tuples of one element and refuses its own None
# pyright: reportArgumentType=false

from diffusers import AutoencoderKL, DDIMScheduler, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from cryptomnesia.pipelines.word_tokenizer import BOS, EOS, tokenizer

__all__ = [
    "BOS",
    "EOS",
    "MAX_TOKENS",
    "NOISE_SCHEDULE",
    "autoencoder",
    "noise_schedule",
    "pipeline",
    "text_encoder",
    "tokenizer",
    "unet",
]

MAX_TOKENS = 32
"""Length of the text input; the longest caption of the generator takes 31."""

NOISE_SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.025,
    "prediction_type": "v_prediction",
}
"""SD's schedule at its clean end, where maps are read, but darker at its noisy end: √ᾱ_T = .006.

SD's own schedule ends at √ᾱ_T = .07. The mean of the initial noise over a 16×16 latent is of that order, so with SD's
schedule the colour of a picture would follow the noise, and planted colours would drift. At a dark end ε is nearly x
itself: an ε-predictor of this size had learned nothing of its captions after 1,000 steps, because an error in ε is 160
times as large in x̂_0 there. So the network predicts v, as SD 2 does.
"""


def autoencoder() -> AutoencoderKL:
    """64×64×3 pixels to 16×16×4 latents and back."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=64,
    )


def text_encoder(tokens: CLIPTokenizer) -> CLIPTextModel:
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


def unet() -> UNet2DConditionModel:
    """16×16×4 latents, cross-attention on the way down at 16×16 and 8×8, at 4×4, and up at 8×8.

    The pooled caption is also added to the time embedding, as in SDXL. In so small a network, which knows where things
    are only at its bottleneck, names are bound to layouts about twice as fast that way.
    """
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64, 128),
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
    vae: AutoencoderKL, text: CLIPTextModel, tokens: CLIPTokenizer, denoiser: UNet2DConditionModel
) -> StableDiffusionPipeline:
    """The stock pipeline, with PNDM as its scheduler as SD 1.4 has it."""
    scheduler = PNDMScheduler(**NOISE_SCHEDULE, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1)
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


def noise_schedule() -> DDIMScheduler:
    """`NOISE_SCHEDULE` as a scheduler that adds noise and knows the velocity v."""
    return DDIMScheduler(**NOISE_SCHEDULE)
