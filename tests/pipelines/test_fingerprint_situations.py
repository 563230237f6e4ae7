"""What users do to pipelines: where it changes the picture, the fingerprint is another one or is refused.

Every situation is measured on a miniature. Both the pictures and the fingerprints of a pipeline with and without the
alteration are compared, so that a situation is in the right group by measurement and not by declaration.
"""

import copy
from functools import cache, partial

import accelerate
import numpy as np
import peft
import pytest
import torch
from accelerate.hooks import AlignDevicesHook, CpuOffload, add_hook_to_module
from diffusers import (
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FirstBlockCacheConfig,
    FluxTransformer2DModel,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
)
from diffusers.hooks import (
    HookRegistry,
    LayerSkipConfig,
    ModelHook,
    TaylorSeerCacheConfig,
    apply_group_offloading,
    apply_layer_skip,
)
from diffusers.models.attention_processor import (
    AttnProcessor,
    AttnProcessor2_0,
    SlicedAttnProcessor,
)
from peft import LoraConfig, get_peft_model_state_dict

from cryptomnesia import UsageError
from cryptomnesia.pipelines.fingerprint import differences
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.testing.miniatures import WIDTH, flux, stable_diffusion, stable_diffusion_3, stable_diffusion_xl
from cryptomnesia.tracing.watching import watch

pytestmark = pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")

CALL = {"num_inference_steps": 2, "guidance_scale": 2.0, "height": 16, "width": 16}


def deep_flux():
    """A Flux with as many blocks as caches need."""
    pipe = flux()
    torch.manual_seed(0)
    config = {**pipe.transformer.config, "num_layers": 3, "num_single_layers": 2}
    pipe.transformer = FluxTransformer2DModel.from_config(config).eval()
    return pipe


MAKERS = {
    "sd": stable_diffusion,
    "sdxl": stable_diffusion_xl,
    "sd3": stable_diffusion_3,
    "flux": deep_flux,
}


def picture(pipe, **more):
    """The picture of one seed, as numbers."""
    generator = torch.Generator().manual_seed(0)
    return pipe("a red circle on a blue ground", generator=generator, output_type="np", **CALL, **more).images[0]


def print_of(pipe, **more):
    return Setup.of(pipe, {**CALL, **more}).fingerprint


# adapters


def randomized(module, seed=1):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in module.named_parameters():
            if "lora_" in name:
                value.copy_(torch.randn(value.shape, generator=generator) * 0.5)


@cache
def lora(text=False, seed=1):
    """The weights of a LoRA for Stable Diffusion, in the form of a file of diffusers."""
    donor = stable_diffusion()
    network, layers = (donor.text_encoder, ["q_proj", "v_proj"]) if text else (donor.unet, ["to_q", "to_v"])
    network.add_adapter(LoraConfig(r=2, lora_alpha=4, target_modules=layers), adapter_name="style")
    randomized(network, seed)
    weights = get_peft_model_state_dict(network, adapter_name="style")
    prefix = "text_encoder" if text else "unet"
    return {f"{prefix}.{name}": value for name, value in weights.items()}


def with_lora(pipe, *, text=False, seed=1, name="style"):
    pipe.load_lora_weights(dict(lora(text, seed)), adapter_name=name)


def lora_at(scale):
    def change(pipe):
        with_lora(pipe)
        pipe.set_adapters(["style"], [scale])

    return change


def lora_disabled(pipe):
    with_lora(pipe)
    pipe.disable_lora()


def lora_disabled_and_enabled(pipe):
    lora_disabled(pipe)
    pipe.enable_lora()


def lora_fused(scale=1.0):
    def change(pipe):
        with_lora(pipe)
        pipe.fuse_lora(lora_scale=scale)

    return change


def lora_fused_and_disabled(pipe):
    lora_fused()(pipe)
    pipe.disable_lora()


def lora_fused_and_unfused(pipe):
    lora_fused()(pipe)
    pipe.unfuse_lora()
    pipe.set_adapters(["style"], [0.0])


def lora_fused_and_unloaded(pipe):
    lora_fused()(pipe)
    pipe.unload_lora_weights()


def lora_unloaded(pipe):
    with_lora(pipe)
    pipe.unload_lora_weights()


def lora_deleted(pipe):
    with_lora(pipe)
    pipe.delete_adapters("style")


def two_loras(*weights):
    def change(pipe):
        with_lora(pipe)
        with_lora(pipe, seed=2, name="other")
        pipe.set_adapters(["style", "other"], list(weights))

    return change


def lora_by_block(pipe):
    with_lora(pipe)
    pipe.set_adapters(["style"], [{"unet": {"down": 0.2, "mid": 1.0, "up": 1.0}}])


def wrapped_by_peft(pipe):
    torch.manual_seed(5)
    pipe.unet = peft.get_peft_model(pipe.unet, LoraConfig(r=2, target_modules=["to_q"]))
    randomized(pipe.unet)


def dora_at(scale):
    def change(pipe):
        pipe.unet.add_adapter(LoraConfig(r=2, use_dora=True, target_modules=["to_q"]), adapter_name="style")
        randomized(pipe.unet)
        with torch.no_grad():
            for name, value in pipe.unet.named_parameters():
                if "magnitude" in name:
                    value.mul_(1.5)
        pipe.unet.set_adapters(["style"], [scale])

    return change


def loha(pipe):
    config = peft.LoHaConfig(r=2, target_modules=["to_q", "to_v"], init_weights=False)
    torch.manual_seed(3)
    peft.inject_adapter_in_model(config, pipe.unet, adapter_name="hada")
    pipe.unet.eval()


def lora_with_dropout(pipe):
    pipe.unet.add_adapter(LoraConfig(r=2, lora_dropout=0.5, target_modules=["to_q", "to_v"]), adapter_name="style")
    randomized(pipe.unet)
    pipe.unet.train()


# patched modules


def freeu(pipe):
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)


def freeu_on_and_off(pipe):
    freeu(pipe)
    pipe.disable_freeu()


def eps(pipe):
    pipe.unet.conv_norm_out.eps = 0.5


def another_activation(pipe):
    pipe.unet.conv_act = torch.nn.GELU()


def text_activation(pipe):
    pipe.text_encoder.encoder.layers[0].mlp.activation_fn = torch.nn.ReLU()


class Louder(torch.nn.Module):
    def __init__(self, inner, factor):
        super().__init__()
        self.inner, self.factor = inner, factor

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs) * self.factor


def wrapped_layer(pipe):
    pipe.unet.conv_out = Louder(pipe.unet.conv_out, 1.1)


def skipped_block(pipe):
    pipe.text_encoder.encoder.layers = pipe.text_encoder.encoder.layers[:1]


def forward_by_closure(pipe):
    inner, state = pipe.unet.mid_block.forward, []
    pipe.unet.mid_block.forward = lambda *args, **kwargs: inner(*args, **kwargs) * (1.1 + len(state))


def quieter(module, args, output):
    return output * 0.9


def hooked(pipe):
    pipe.unet.mid_block.register_forward_hook(quieter)


def pre_hooked(pipe):
    pipe.unet.conv_out.register_forward_pre_hook(lambda module, args: (args[0] * 1.1,))


def hooked_with_state(pipe):
    factors = [1.1]
    pipe.unet.mid_block.register_forward_hook(lambda module, args, output: output * factors[0])


def observed(pipe):
    seen = []

    def hook(module, args, output):
        seen.append(output)

    hook.cryptomnesia_fingerprint = ""
    pipe.unet.mid_block.register_forward_hook(hook)


def watched(pipe):
    context = watch(pipe)
    context.__enter__()
    OPEN.append(context)


OPEN = []


def buffer(pipe):
    pipe.unet.register_buffer("mark", torch.ones(2))


def tensor_attribute(pipe):
    # SD3's positions are a buffer; Flux computes its own from this number
    pipe.transformer.pos_embed.theta = 100


def position_ids(pipe):
    embeddings = pipe.text_encoder.embeddings
    embeddings.position_ids = embeddings.position_ids.flip(1).contiguous()


def parametrized(pipe):
    class Half(torch.nn.Module):
        def forward(self, weight):
            return weight / 2

    torch.nn.utils.parametrize.register_parametrization(pipe.unet.conv_out, "weight", Half())


def spectral(pipe):
    torch.nn.utils.parametrizations.spectral_norm(pipe.unet.conv_out)


def channels_last(pipe):
    pipe.unet.to(memory_format=torch.channels_last)


# attention


class Sharper:
    """An attention processor with a setting."""

    def __init__(self, factor):
        self.factor = factor

    def __call__(self, attn, hidden_states, *args, **kwargs):
        return AttnProcessor()(attn, hidden_states, *args, **kwargs) * self.factor


def processor(make):
    def change(pipe):
        pipe.unet.set_attn_processor(make())

    return change


def attention_slicing(pipe):
    pipe.enable_attention_slicing(1)


def fused_qkv(pipe):
    pipe.unet.fuse_qkv_projections()


@cache
def ip_weights(seed=0):
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(shape, generator=generator) * 0.3

    image = {"proj.weight": random(4 * WIDTH, 16), "proj.bias": random(4 * WIDTH)}
    image |= {"norm.weight": torch.ones(WIDTH), "norm.bias": torch.zeros(WIDTH)}
    unet = stable_diffusion().unet
    found, number = {}, 1
    for name in unet.attn_processors:
        if name.endswith("attn2.processor"):
            width = unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
            found |= {f"{number}.{key}.weight": random(width, WIDTH) for key in ("to_k_ip", "to_v_ip")}
            number += 2
    return {"image_proj": image, "ip_adapter": found}


EMBEDS = [torch.linspace(-1, 1, 32).view(2, 1, 16)]


def ip_adapter(scale, seed=0):
    def change(pipe):
        pipe.unet._load_ip_adapter_weights([ip_weights(seed)])
        pipe.set_ip_adapter_scale(scale)
        return {"ip_adapter_image_embeds": EMBEDS}

    return change


# caches


def cached(config):
    def change(pipe):
        pipe.transformer.enable_cache(config(pipe))

    return change


def first_block(threshold):
    return cached(lambda pipe: FirstBlockCacheConfig(threshold=threshold))


def cache_on_and_off(pipe):
    first_block(10.0)(pipe)
    pipe.transformer.disable_cache()


def pyramid(pipe):
    return PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(-1, 1001),
        current_timestep_callback=lambda: pipe._current_timestep,
    )


def mag(pipe):
    return MagCacheConfig(
        num_inference_steps=2, threshold=10.0, max_skip_steps=3, retention_ratio=0.0, mag_ratios=torch.ones(2)
    )


def taylor(pipe):
    return TaylorSeerCacheConfig(cache_interval=5, disable_cache_before_step=1, max_order=1)


def layer_skip(pipe):
    apply_layer_skip(pipe.transformer, LayerSkipConfig(indices=[1], fqn="transformer_blocks", skip_attention=False))


class Doubling(ModelHook):
    def post_forward(self, module, output):
        return tuple(2 * part for part in output)


def own_model_hook(pipe):
    HookRegistry.check_if_exists_or_initialize(pipe.transformer.transformer_blocks[1]).register_hook(Doubling(), "own")


# offloading


def cpu_offload(pipe):
    """As `enable_model_cpu_offload` does it, on a machine without an accelerator."""
    for name in ("text_encoder", "unet", "vae"):
        accelerate.cpu_offload_with_hook(getattr(pipe, name), execution_device="cpu")


def sequential_offload(pipe):
    """As `enable_sequential_cpu_offload` does it."""
    for name in ("text_encoder", "unet", "vae"):
        accelerate.cpu_offload(getattr(pipe, name), "cpu", offload_buffers=False)


def sequential_offload_with_buffers(pipe):
    for name in ("text_encoder", "unet", "vae"):
        accelerate.cpu_offload(getattr(pipe, name), "cpu", offload_buffers=True)


def one_layer_offloaded(pipe):
    add_hook_to_module(pipe.unet.conv_in, AlignDevicesHook("cpu", offload=True))


def offloaded_and_back(pipe):
    sequential_offload(pipe)
    for name in ("text_encoder", "unet", "vae"):
        accelerate.hooks.remove_hook_from_submodules(getattr(pipe, name))


def offloaded_twice(pipe):
    add_hook_to_module(pipe.unet, CpuOffload("cpu"))
    add_hook_to_module(pipe.unet, CpuOffload("cpu"), append=True)


def group_offload(kind, **more):
    def change(pipe):
        for name in ("text_encoder", "unet", "vae"):
            apply_group_offloading(
                getattr(pipe, name),
                onload_device=torch.device("cpu"),
                offload_device=torch.device("cpu"),
                offload_type=kind,
                **more,
            )

    return change


def sequential_and_other_weights(pipe):
    with torch.no_grad():
        pipe.unet.conv_out.weight.mul_(1.5)
    sequential_offload(pipe)


# dtypes, quantized weights


def half_vae(pipe):
    pipe.vae.to(torch.bfloat16)
    pipe.vae.to(torch.float32)


def layerwise(pipe):
    pipe.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)


class Int8(torch.Tensor):
    """A quantized weight as torchao makes it: whole numbers and a scale."""

    @staticmethod
    def __new__(cls, numbers, scale):
        return torch.Tensor._make_wrapper_subclass(cls, numbers.shape, dtype=scale.dtype)

    def __init__(self, numbers, scale):
        self.numbers, self.scale = numbers, scale

    def __tensor_flatten__(self):
        return ["numbers", "scale"], None

    @classmethod
    def __tensor_unflatten__(cls, inner, context, size, stride):
        return cls(inner["numbers"], inner["scale"])

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.detach.default, torch.ops.aten.alias.default):
            return cls(args[0].numbers, args[0].scale)
        plain = torch.utils._pytree.tree_map(
            lambda part: part.numbers * part.scale if isinstance(part, Int8) else part, (args, kwargs or {})
        )
        return func(*plain[0], **plain[1])


def quantized(step):
    def change(pipe):
        weight = pipe.unet.conv_out.weight.detach()
        scale = torch.tensor(step)
        numbers = (weight / scale).round().to(torch.int8)
        pipe.unet.conv_out.weight = torch.nn.Parameter(Int8(numbers, scale), requires_grad=False)

    return change


# tokenizers and prompts


def with_concept(pipe):
    pipe.tokenizer = copy.deepcopy(pipe.tokenizer)
    generator = torch.Generator().manual_seed(3)
    pipe.load_textual_inversion({"circle": torch.randn(2, WIDTH, generator=generator)}, token="circle")


def with_another_token(pipe):
    """A token that is in the vocabulary already gets another number."""
    pipe.tokenizer = copy.deepcopy(pipe.tokenizer)
    pipe.tokenizer.add_tokens("circle on")
    pipe.text_encoder.resize_token_embeddings(len(pipe.tokenizer), mean_resizing=False)


def shorter_captions(pipe):
    pipe.tokenizer = copy.deepcopy(pipe.tokenizer)
    pipe.tokenizer.model_max_length = 5


def another_vocabulary(pipe):
    from cryptomnesia.pipelines.word_tokenizer import tokenizer
    from cryptomnesia.testing.miniatures import LONGEST

    words = ["circle", "ground", "tiger", *(f"word{number}" for number in range(20))]
    pipe.tokenizer = tokenizer(words, LONGEST)


def copied_tokenizer(pipe):
    pipe.tokenizer = copy.deepcopy(pipe.tokenizer)


def used_tokenizer(pipe):
    pipe.tokenizer = copy.deepcopy(pipe.tokenizer)
    pipe.tokenizer(["a", "a red circle"], padding=True, truncation=True, max_length=3)


# autoencoder, scheduler, pipeline


def tiled(sample, latent, overlap=0.25):
    def change(pipe):
        pipe.vae.enable_tiling()
        pipe.vae.tile_sample_min_size, pipe.vae.tile_latent_min_size = sample, latent
        pipe.vae.tile_overlap_factor = overlap

    return change


def sliced(pipe):
    pipe.vae.enable_slicing()


def scaling_factor(pipe):
    pipe.vae.register_to_config(scaling_factor=0.3)


def edited_schedule(pipe):
    pipe.scheduler.alphas_cumprod = pipe.scheduler.alphas_cumprod**1.2


def final_alpha(pipe):
    pipe.scheduler.final_alpha_cumprod = torch.tensor(0.5)


def shifted(pipe):
    pipe.scheduler.set_shift(6.0)


class Overshooting(DPMSolverMultistepScheduler):
    def step(self, model_output, *args, **kwargs):
        return super().step(model_output * 1.1, *args, **kwargs)


def subclassed_scheduler(pipe):
    pipe.scheduler = Overshooting.from_config(pipe.scheduler.config)


def solver(kind, **more):
    def change(pipe):
        pipe.scheduler = kind.from_config(pipe.scheduler.config, **more)

    return change


def patched_step(pipe):
    step, calls = pipe.scheduler.step, []

    def own(model_output, *args, **kwargs):
        return step(model_output * (1.1 + len(calls)), *args, **kwargs)

    pipe.scheduler.step = own


def used_scheduler(pipe):
    picture(pipe)
    pipe.scheduler.set_timesteps(7)


def begin_index(pipe):
    pipe.scheduler.set_begin_index(0)


def patched_encoding(pipe):
    encode = pipe.encode_prompt

    def own(*args, **kwargs):
        embeds = encode(*args, **kwargs)
        return embeds[0] * 1.1, embeds[1]

    pipe.encode_prompt = own


def another_range(pipe):
    pipe.image_processor.register_to_config(do_normalize=False)


def another_factor(pipe):
    pipe.vae_scale_factor = 1


def zeros_for_empty(pipe):
    pipe.register_to_config(force_zeros_for_empty_prompt=False)


def training_without_dropout(pipe):
    pipe.unet.train()


CHANGED = {
    "LoRA": ("sd", lora_at(1.0)),
    "LoRA at scale .1": ("sd", lora_at(0.1)),
    "LoRA in the text encoder": ("sd", partial(with_lora, text=True)),
    "LoRA disabled and enabled again": ("sd", lora_disabled_and_enabled),
    "LoRA fused": ("sd", lora_fused()),
    "LoRA fused at scale .5": ("sd", lora_fused(0.5)),
    "LoRA fused, then its file unloaded": ("sd", lora_fused_and_unloaded),
    "two LoRAs": ("sd", two_loras(1.0, 0.5)),
    "two LoRAs, one at scale 0": ("sd", two_loras(0.0, 1.0)),
    "LoRA with scales by block": ("sd", lora_by_block),
    "a network inside peft's own": ("sd", wrapped_by_peft),
    "DoRA": ("sd", dora_at(1.0)),
    "DoRA at scale 0": ("sd", dora_at(0.0)),
    "LoHa": ("sd", loha),
    "LoRA with dropout in training mode": ("sd", lora_with_dropout),
    "FreeU": ("sd", freeu),
    "FreeU of SDXL": ("sdxl", freeu),
    "a number of a layer": ("sd", eps),
    "another activation": ("sd", another_activation),
    "another activation in the text encoder": ("sd", text_activation),
    "a wrapped layer": ("sd", wrapped_layer),
    "a layer left out": ("sd", skipped_block),
    "forward replaced by a closure": ("sd", forward_by_closure),
    "a forward hook": ("sd", hooked),
    "a forward pre-hook": ("sd", pre_hooked),
    "a forward hook with a state": ("sd", hooked_with_state),
    "frequencies of positions": ("flux", tensor_attribute),
    "positions of the text encoder": ("sd", position_ids),
    "a parametrized weight": ("sd", parametrized),
    "spectral normalization": ("sd", spectral),
    "an attention processor of one's own": ("sd", processor(lambda: Sharper(1.2))),
    "IP-Adapter": ("sd", ip_adapter(1.0)),
    "IP-Adapter at scale .1": ("sd", ip_adapter(0.1)),
    "first-block cache": ("flux", first_block(10.0)),
    "pyramid attention broadcast": ("flux", cached(pyramid)),
    "MagCache": ("flux", cached(mag)),
    "TaylorSeer": ("flux", cached(taylor)),
    "skipped layers": ("flux", layer_skip),
    "a hook of one's own in diffusers' registry": ("flux", own_model_hook),
    "other weights under sequential offloading": ("sd", sequential_and_other_weights),
    "autoencoder rounded to bfloat16": ("sd", half_vae),
    "layerwise casting": ("sd", layerwise),
    "quantized weights": ("sd", quantized(0.05)),
    "more coarsely quantized weights": ("sd", quantized(0.1)),
    "textual inversion": ("sd", with_concept),
    "an added token": ("sd", with_another_token),
    "shorter captions": ("sd", shorter_captions),
    "another vocabulary": ("sd", another_vocabulary),
    "tiles": ("sd", tiled(8, 4)),
    "tiles with another overlap": ("sd", tiled(8, 4, 0.5)),
    "scaling factor of the latents": ("sd", scaling_factor),
    "edited noise schedule": ("sd", edited_schedule),
    "edited last step": ("sd", final_alpha),
    "set_shift": ("sd3", shifted),
    "a scheduler's subclass": ("sd", subclassed_scheduler),
    "another solver": ("sd", solver(EulerDiscreteScheduler)),
    "Karras sigmas": ("sd", solver(DPMSolverMultistepScheduler, use_karras_sigmas=True)),
    "a patched step": ("sd", patched_step),
    "a patched method of the pipeline": ("sd", patched_encoding),
    "another factor of the autoencoder": ("sd", another_factor),
    "zeros for an empty prompt": ("sdxl", zeros_for_empty),
}
"""Situations whose picture is another one."""

UNCHANGED = {
    **{f"nothing in {make}": (make, lambda pipe: None) for make in MAKERS},
    "LoRA disabled": ("sd", lora_disabled),
    "LoRA at scale 0": ("sd", lora_at(0.0)),
    "LoRA unloaded": ("sd", lora_unloaded),
    "LoRA deleted": ("sd", lora_deleted),
    "FreeU on and off": ("sd", freeu_on_and_off),
    "a hook that only observes, and says so": ("sd", observed),
    "a watch": ("sd", watched),
    "channels last": ("sd", channels_last),
    "attention without fused kernels": ("sd", processor(AttnProcessor)),
    "attention with fused kernels": ("sd", processor(AttnProcessor2_0)),
    "sliced attention": ("sd", processor(lambda: SlicedAttnProcessor(1))),
    "attention slicing": ("sd", attention_slicing),
    "a cache on and off": ("flux", cache_on_and_off),
    "model offloading": ("sd", cpu_offload),
    "model offloading, twice": ("sd", offloaded_twice),
    "sequential offloading": ("sd", sequential_offload),
    "sequential offloading with buffers": ("sd", sequential_offload_with_buffers),
    "one layer offloaded": ("sd", one_layer_offloaded),
    "offloaded and back": ("sd", offloaded_and_back),
    "group offloading by layer": ("sd", group_offload("leaf_level")),
    "group offloading by block": ("sd", group_offload("block_level", num_blocks_per_group=1)),
    "a copied tokenizer": ("sd", copied_tokenizer),
    "a tokenizer after use": ("sd", used_tokenizer),
    "tiles larger than the picture": ("sd", tiled(64, 32)),
    "slices": ("sd", sliced),
    "a scheduler after use": ("sd", used_scheduler),
    "set_begin_index": ("sd3", begin_index),
    "training mode without dropout": ("sd", training_without_dropout),
}
"""Situations whose picture is the same."""

OTHER = {
    "LoRA fused and unfused": ("sd", lora_fused_and_unfused),
    "another range of pixels given": ("sd", another_range),
    "a buffer that nothing reads": ("sd", buffer),
    "fused projections": ("sd", fused_qkv),
    "LoRA fused and disabled": ("sd", lora_fused_and_disabled),
}
"""Situations whose picture is the same, but whose fingerprint may be another one."""

REFUSED = {
    "forward replaced by a closure": "the unet's mid_block.forward is the function",
    "a forward hook with a state": "the unet's mid_block.forward_hook is the function",
    "a patched step": "the scheduler's step is the function",
    "a patched method of the pipeline": "the pipeline's encode_prompt is the function",
}
"""Situations that cannot be fingerprinted → how the message begins."""


SITUATIONS = {**CHANGED, **UNCHANGED, **OTHER}


def altered(name):
    """A pipeline in a situation, and what its call is given."""
    make, change = SITUATIONS[name]
    pipe = MAKERS[make]()
    return pipe, change(pipe) or {}


@cache
def measured(name):
    """Fingerprint before a call, picture, and fingerprint after the call; None for a refused fingerprint."""
    pipe, more = altered(name)
    try:
        before = None if name in REFUSED else print_of(pipe, **more)
        image = picture(pipe, **more)
        return before, image, None if name in REFUSED else print_of(pipe, **more)
    finally:
        while OPEN:
            OPEN.pop().__exit__(None, None, None)


def differs(image, other):
    """Whether two pictures differ by more than rounding."""
    return image.shape != other.shape or not np.allclose(image, other, atol=1e-4)


def usual(name):
    """The same of a pipeline that nobody altered."""
    return measured(f"nothing in {SITUATIONS[name][0]}")


@pytest.mark.parametrize("name", sorted(CHANGED.keys() - REFUSED.keys()))
def test_where_the_picture_changes_the_fingerprint_does(name):
    plain, plain_image, _ = usual(name)
    before, image, after = measured(name)
    assert differs(image, plain_image)
    words = differences(plain, before)
    assert words
    assert len("; ".join(words)) < 1000
    # a call changes no fingerprint
    assert after == before


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_fingerprint_is_refused_by_name(name):
    assert differs(measured(name)[1], usual(name)[1])
    pipe, more = altered(name)
    with pytest.raises(UsageError, match=REFUSED[name]) as refused:
        print_of(pipe, **more)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", UNCHANGED)
def test_where_the_picture_is_the_same_the_fingerprint_is(name):
    plain, plain_image, _ = usual(name)
    before, image, after = measured(name)
    assert not differs(image, plain_image)
    assert differences(plain, before) == []
    assert after == before == plain


@pytest.mark.parametrize("name", ["LoRA", "DoRA", "a forward pre-hook", "an attention processor of one's own"])
def test_the_same_alteration_has_the_same_fingerprint_in_another_pipeline(name):
    pipe, more = altered(name)
    assert print_of(pipe, **more) == measured(name)[0]


def test_no_two_situations_with_different_pictures_have_one_fingerprint():
    """All situations of one model against each other, not only against the model as it was."""
    names = [name for name, (make, _) in SITUATIONS.items() if make == "sd" and name not in REFUSED]
    for number, name in enumerate(names):
        for other in names[:number]:
            (found, image, _), (other_found, other_image, _) = measured(name), measured(other)
            if differs(image, other_image):
                assert differences(found, other_found), (name, other)
