"""Which pipelines the library takes: by class, by what a user vouches for, and whom it refuses."""

import functools
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionInstructPix2PixPipeline, StableDiffusionPAGPipeline, StableDiffusionPipeline

from cryptomnesia import UsageError, calibrate, detect, guard, vouch, watch
from cryptomnesia.pipelines.families import family_of
from cryptomnesia.pipelines.families.unet import UNetFamily
from cryptomnesia.testing.miniatures import CALL, PROMPTS, pictures, stable_diffusion
from cryptomnesia.testing.miniatures.parts import unet


def remade(kind: type[Any], **more: Any) -> Any:
    """A pipeline of another class from the parts of Stable Diffusion."""
    pipe = kind(**{**stable_diffusion().components, **more}, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


class Honest(StableDiffusionPipeline):
    """A subclass that keeps the call."""

    def greet(self):
        return "hello"


class Fork(StableDiffusionPipeline):
    """A subclass with a call of its own."""

    def __call__(self, *args, **kwargs):
        return super().__call__(*args, **kwargs)


class Disguised(StableDiffusionPipeline):
    """A subclass whose call has the name and the module of the one that it takes the place of."""

    @functools.wraps(StableDiffusionPipeline.__call__)
    def __call__(self, *args, **kwargs):
        return super().__call__(*args, **kwargs)


class Inference(StableDiffusionPipeline):
    """A subclass with a wrapper of PyTorch around the call."""

    __call__ = torch.inference_mode()(StableDiffusionPipeline.__call__)


def impostor() -> Any:
    """A class of another package with the name of one of diffusers."""
    return type("StableDiffusionPipeline", (Fork,), {})


def test_an_honest_subclass_is_known():
    pipe = remade(Honest)
    calibration = calibrate(pipe, PROMPTS, batch_size=51, **CALL)
    with guard(pipe, calibration, fpr=0.5) as guarding:
        pipe("a red circle", **CALL, generator=torch.Generator().manual_seed(0), output_type="latent")
    (found,) = detect(pipe, "a red circle", seeds=[0], calibration=calibration, fpr=0.5, **CALL)
    assert guarding.verdicts[0].score == pytest.approx(found.verdict.score, rel=1e-4)


def test_a_wrapper_of_a_library_changes_no_call():
    with watch(remade(Inference)) as seen:
        seen.pipe("a red circle", **CALL, output_type="latent")
    assert seen.trajectory.complete


def test_a_call_that_took_the_place_of_diffusers_own_is_refused(monkeypatch):
    pipe = stable_diffusion()
    monkeypatch.setattr(StableDiffusionPipeline, "__call__", Disguised.__call__)
    with pytest.raises(UsageError, match="runs another `__call__` than the StableDiffusionPipeline"):
        family_of(pipe)


@pytest.mark.parametrize("kind", [Fork, Disguised, impostor()], ids=["fork", "disguised", "impostor"])
def test_a_class_with_a_call_of_its_own_is_refused_until_somebody_vouches_for_it(kind):
    pipe = remade(kind)
    calibration = calibrate(stable_diffusion(), PROMPTS, batch_size=51, **CALL)
    message = "runs another `__call__` than the StableDiffusionPipeline that is known; if it calls its network"
    with pytest.raises(UsageError, match=message):
        calibrate(pipe, PROMPTS, **CALL)
    with pytest.raises(UsageError, match=message):
        detect(pipe, "a red circle", calibration=calibration, **CALL)
    with pytest.raises(UsageError, match=message):
        guard(pipe, calibration, fpr=0.5)
    with watch(pipe, family="stable-diffusion") as seen:
        pipe("a red circle", **CALL, output_type="latent")
    assert seen.trajectory.complete
    assert family_of(pipe).guided_in(seen.family.sampling({}, {"num_inference_steps": 3, "guidance_scale": 2.0}))


def test_a_class_of_a_family_can_be_given():
    class Swapped(UNetFamily):
        name = "swapped"
        first = "cond"

    pipe = stable_diffusion()
    with watch(pipe, keep=(0,)) as usual:
        pipe("a red circle", **CALL, generator=torch.Generator().manual_seed(0), output_type="latent")
    with watch(pipe, keep=(0,), family=Swapped) as swapped:
        pipe("a red circle", **CALL, generator=torch.Generator().manual_seed(0), output_type="latent")
    first, second = usual.trajectory.step(0), swapped.trajectory.step(0)
    assert torch.equal(first.uncond.value, second.cond.value)
    for wrong in (7, int, UNetFamily(pipe)):
        with pytest.raises(UsageError, match="as family; give a name, or a class derived from NetworkFamily"):
            vouch(pipe, wrong)
    with pytest.raises(UsageError, match="got the unknown family 'nosuch'; known are"):
        vouch(pipe, "nosuch")


def instructed() -> Any:
    torch.manual_seed(0)
    pipe = stable_diffusion()
    parts = {name: pipe.components[name] for name in ("vae", "text_encoder", "tokenizer", "scheduler")}
    parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return StableDiffusionInstructPix2PixPipeline(unet=unet(in_channels=8).eval(), **parts)


THREE = {
    "StableDiffusionInstructPix2PixPipeline": (instructed, pictures.IMAGE),
    "StableDiffusionPAGPipeline": (lambda: remade(StableDiffusionPAGPipeline, pag_applied_layers=["mid"]), {}),
}
"""Pipelines with three branches, and the pictures of their calls."""


@pytest.mark.parametrize("name", THREE)
def test_three_branches_are_refused_by_name_and_when_somebody_vouches_for_them(name):
    make, given = THREE[name]
    pipe = make()
    with pytest.raises(UsageError, match=f"got a pipeline of the unknown family {name}; known are .* 'Add a family'"):
        family_of(pipe)
    vouch(pipe, "stable-diffusion")
    message = f"a {name} gave the network 3 branches for one step; known are one and two"
    with watch(pipe), pytest.raises(UsageError, match=message):
        pipe("a red circle", **CALL, **given, output_type="latent")
