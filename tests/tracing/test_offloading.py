"""Offloaded models: watched with the same picture, judged and mapped with the same numbers."""

import accelerate
import pytest
import torch
from diffusers.hooks import apply_group_offloading

from cryptomnesia import calibrate, detect, localize
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.testing.miniatures import CALL, PROMPTS, flux, stable_diffusion, stable_diffusion_3
from cryptomnesia.tracing.watching import watch

CPU = torch.device("cpu")
NETWORKS = ("text_encoder", "text_encoder_2", "transformer", "unet", "vae")


def networks(pipe):
    return [getattr(pipe, name) for name in NETWORKS if getattr(pipe, name, None) is not None]


def whole(pipe):
    """As `enable_model_cpu_offload` does it, on a machine without an accelerator."""
    for network in networks(pipe):
        accelerate.cpu_offload_with_hook(network, execution_device=CPU)


def sequential(pipe):
    """As `enable_sequential_cpu_offload` does it: between two calls no layer has weights."""
    for network in networks(pipe):
        accelerate.cpu_offload(network, CPU, offload_buffers=len(network._parameters) > 0)


def by_layer(pipe):
    for network in networks(pipe):
        apply_group_offloading(network, onload_device=CPU, offload_device=CPU, offload_type="leaf_level")


def by_block(pipe):
    for network in networks(pipe):
        apply_group_offloading(
            network, onload_device=CPU, offload_device=CPU, offload_type="block_level", num_blocks_per_group=1
        )


def to_disk(folder):
    def offload(pipe):
        for network in networks(pipe):
            accelerate.disk_offload(network, str(folder / type(network).__name__), CPU)

    return offload


OFFLOADING = {"whole networks": whole, "layer by layer": sequential, "groups": by_layer, "blocks": by_block}
MAKERS = {"sd": stable_diffusion, "sd3": stable_diffusion_3, "flux": flux}


def call(pipe):
    generator = torch.Generator().manual_seed(0)
    options = {"height": 16, "width": 16, "num_inference_steps": 2, "output_type": "np"}
    return pipe("a red circle", generator=generator, **options).images[0]


@pytest.mark.parametrize("how", OFFLOADING)
@pytest.mark.parametrize("make", MAKERS)
def test_an_offloaded_pipeline_is_watched_and_has_the_same_fingerprint(make, how):
    pipe, other = MAKERS[make](), MAKERS[make]()
    OFFLOADING[how](pipe)
    plain = call(pipe)
    with watch(pipe, keep="all") as seen:
        watched = call(pipe)
    assert (plain == watched).all()
    with watch(other) as expected:
        call(other)
    assert torch.equal(seen.trajectory.norms["delta"], expected.trajectory.norms["delta"])
    assert Setup.of(pipe, {}).fingerprint == Setup.of(other, {}).fingerprint


@pytest.mark.parametrize("how", OFFLOADING)
def test_an_offloaded_pipeline_gets_the_same_verdicts_and_maps(how, calibration):
    pipe = stable_diffusion()
    OFFLOADING[how](pipe)
    for finding, expected in zip(
        detect(pipe, PROMPTS[:2], calibration=calibration, fpr=0.05, seeds=[0, 1], **CALL),
        detect(stable_diffusion(), PROMPTS[:2], calibration=calibration, fpr=0.05, seeds=[0, 1], **CALL),
        strict=True,
    ):
        assert finding.verdict == expected.verdict
    names = ["curvature-difference", "score-difference", "collapse", "bright-ending"]
    (found,) = localize(pipe, ["a red circle"], localizers=names, **CALL)
    (expected,) = localize(stable_diffusion(), ["a red circle"], localizers=names, **CALL)
    for name in names:
        assert torch.equal(found.maps[name], expected.maps[name])


def test_weights_on_disk_have_the_same_fingerprint(tmp_path):
    pipe = stable_diffusion()
    plain = Setup.of(pipe, {}).fingerprint
    to_disk(tmp_path)(pipe)
    assert Setup.of(pipe, {}).fingerprint == plain
    assert next(iter(pipe.unet.parameters())).is_meta


def test_calibrating_an_offloaded_pipeline_is_calibrating_the_pipeline(calibration):
    pipe = stable_diffusion()
    sequential(pipe)
    made = calibrate(pipe, PROMPTS, batch_size=34, **CALL)
    assert made.fingerprint == calibration.fingerprint
    assert torch.equal(made.runs.norms["z"], calibration.runs.norms["z"])
