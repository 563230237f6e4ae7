"""Networks with a cache are watched, and refused for maps before anything is generated."""

import pytest
import torch
from diffusers import FirstBlockCacheConfig, MagCacheConfig, PyramidAttentionBroadcastConfig, TaylorSeerCacheConfig
from diffusers.hooks import HookRegistry, apply_first_block_cache, apply_taylorseer_cache

from cryptomnesia import UsageError, calibrate, localize, watch
from cryptomnesia.detectors import detector
from cryptomnesia.pipelines.families import family_of
from cryptomnesia.testing.miniatures import PROMPTS, flux, stable_diffusion

CALL = {"num_inference_steps": 5, "height": 16, "width": 16, "max_sequence_length": 32}
TAYLOR = TaylorSeerCacheConfig(cache_interval=2, disable_cache_before_step=1, max_order=1)


def broadcast(pipe):
    return PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(-1, 2000),
        current_timestep_callback=lambda: pipe._current_timestep,
    )


CACHES = {
    "FirstBlockCache": lambda pipe: pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.5)),
    "TaylorSeerCache": lambda pipe: pipe.transformer.enable_cache(TAYLOR),
    "MagCache": lambda pipe: pipe.transformer.enable_cache(MagCacheConfig(mag_ratios=[1.0] * 5, num_inference_steps=5)),
    "PyramidAttentionBroadcast": lambda pipe: pipe.transformer.enable_cache(broadcast(pipe)),
    "fbc_leader_block_hook": lambda pipe: apply_first_block_cache(
        pipe.transformer, FirstBlockCacheConfig(threshold=0.5)
    ),
    "taylorseer_cache": lambda pipe: apply_taylorseer_cache(pipe.transformer, TAYLOR),
}
"""Name of a cache in messages → what switches it on."""


def call(pipe):
    pipe.transformer._reset_stateful_cache()
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    return pipe(["a red circle", "a blue star"], generator=generators, output_type="pt", **CALL).images


@pytest.mark.parametrize("name", CACHES)
def test_a_cache_is_watched_and_refused_for_maps(name):
    without, pipe = call(flux()), flux()
    CACHES[name](pipe)
    plain = call(pipe)
    with watch(pipe, keep="all") as seen:
        assert torch.equal(call(pipe), plain)
    assert seen.trajectory.complete
    assert not torch.equal(plain, without)
    made = []
    pipe.transformer.register_forward_hook(lambda *_: made.append(1))
    message = f"FluxTransformer2DModel has the cache {name} on, which answers from an earlier evaluation; switch it off"
    with pytest.raises(UsageError, match=message):
        localize(pipe, "a red circle", localizers=["curvature"], **CALL)
    with pytest.raises(UsageError, match=message):
        calibrate(pipe, PROMPTS, detectors=["curvature"], **CALL)
    with pytest.raises(UsageError, match=message), watch(pipe, signals=detector("curvature").signals):
        call(pipe)
    assert made == []
    with pytest.raises(UsageError, match=message):
        family_of(pipe).denoiser()


def test_a_cache_that_is_switched_off_again_is_gone():
    pipe = flux()
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.5))
    pipe.transformer.disable_cache()
    assert family_of(pipe).denoiser().module is pipe.transformer
    apply_taylorseer_cache(pipe.transformer, TAYLOR)
    HookRegistry.check_if_exists_or_initialize(pipe.transformer).remove_hook("taylorseer_cache", recurse=True)
    assert family_of(pipe).denoiser().module is pipe.transformer


def test_detectors_that_read_the_run_work_with_a_cache():
    pipe = flux()
    pipe.transformer.enable_cache(TAYLOR)
    with watch(pipe) as seen:
        call(pipe)
    assert seen.trajectory.norms["delta"].isfinite().all()


def test_a_forward_that_another_package_replaced_by_a_cache_is_named():
    pipe = stable_diffusion()
    block = pipe.unet.down_blocks[0]
    inner = block.forward
    answers = []

    def cached(*args, **kwargs):
        if not answers:
            answers.append(inner(*args, **kwargs))
        return answers[0]

    cached.__module__, cached.__qualname__ = "DeepCache.extension.deepcache", "DeepCacheSDHelper.wrap.<locals>.wrapped"
    block.forward = cached
    with watch(pipe) as seen:
        pipe("a red circle", num_inference_steps=3, output_type="latent")
    assert seen.trajectory.complete
    with pytest.raises(UsageError, match=r"UNet2DConditionModel has the cache DeepCache.extension.deepcache"):
        localize(pipe, "a red circle", localizers=["curvature"], num_inference_steps=3)
    del block.forward
    assert family_of(pipe).denoiser().module is pipe.unet
