import inspect

import numpy as np
import pytest
import torch
from diffusers.callbacks import SDCFGCutoffCallback
from PIL import Image

from cryptomnesia import UsageError
from cryptomnesia.pipelines.call import NEUTRAL, canonical, defaults_of, silent
from cryptomnesia.pipelines.families import family_of
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.testing.miniatures import (
    flux,
    stable_diffusion,
    stable_diffusion_3,
    stable_diffusion_xl,
    unconditional,
)

MAKERS = [stable_diffusion, stable_diffusion_xl, stable_diffusion_3, flux, unconditional]


def palette(colours):
    image = Image.new("P", (4, 4))
    image.putpalette(colours)
    return image


def see_through(colour):
    image = palette([0, 0, 0, 255, 255, 255])
    image.info["transparency"] = colour
    return image


RED, BLUE = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
ONES = np.ones((4, 4, 3), dtype=np.float32)

DIFFERENT = {
    "pictures": (RED, BLUE),
    "sizes of a picture": (Image.new("L", (2, 8)), Image.new("L", (8, 2))),
    "modes of a picture": (Image.new("L", (4, 4)), Image.new("P", (4, 4))),
    "palettes": (palette([255, 0, 0] * 2), palette([0, 255, 0] * 2)),
    "transparent colours": (see_through(0), see_through(1)),
    "lists of pictures": ([RED, BLUE], [BLUE, RED]),
    "lists of one picture and of two": ([RED], [RED, RED]),
    "a picture and its list": (RED, [RED]),
    "dictionaries of pictures": ({"image": RED, "mask": BLUE}, {"image": BLUE, "mask": BLUE}),
    "names in a dictionary": ({"image": RED}, {"mask": RED}),
    "lists in dictionaries": ({"image": [RED]}, {"image": [BLUE]}),
    "tensors": (torch.zeros(3, 4, 4), torch.ones(3, 4, 4)),
    "shapes of a tensor": (torch.zeros(3, 4, 4), torch.zeros(4, 4, 3)),
    "last digits of a tensor": (torch.tensor([1.0]), torch.tensor([1.0 + 2**-40], dtype=torch.float64)),
    "large whole numbers": (torch.tensor([2**53]), torch.tensor([2**53 + 1])),
    "lists of tensors": ([torch.zeros(2), torch.ones(2)], [torch.ones(2), torch.zeros(2)]),
    "arrays": (ONES, 2 * ONES),
    "number formats of an array": (ONES, ONES.astype(np.float64)),
    "an array and a tensor": (ONES, torch.from_numpy(ONES)),
    "a picture and its array": (RED, np.asarray(RED)),
    "texts": ("a", "b"),
    "numbers": (1, 2),
    "a number and its text": (1, "1"),
    "a picture and None": (RED, None),
    "keys of two kinds": ({1: 2, "1": 3}, {1: 3, "1": 2}),
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_different_arguments_have_different_fingerprints(what):
    first, second = DIFFERENT[what]
    assert canonical("ip_adapter_image", first) != canonical("ip_adapter_image", second)
    if not isinstance(first, str | int):
        setups = [Setup.of(stable_diffusion(), {"ip_adapter_image": value}) for value in (first, second)]
        assert setups[0].fingerprint["options"] != setups[1].fingerprint["options"]


SAME = {
    "a copy of a picture": (RED, RED.copy()),
    "a view of an array": (ONES[:, :, 0], ONES.copy()[:, :, 0]),
    "a tensor in half precision": (torch.ones(3), torch.ones(3, dtype=torch.float16)),
    "a tensor in bfloat16": (torch.ones(3), torch.ones(3, dtype=torch.bfloat16)),
    "a transposed tensor": (torch.arange(6.0).view(2, 3).T, torch.arange(6.0).view(2, 3).T.contiguous()),
    "a tensor with gradient": (torch.ones(3), torch.ones(3, requires_grad=True)),
    "a tuple and a list": ((1, RED), [1, RED]),
    "numbers of numpy": (np.float32(0.5), 0.5),
    "whole numbers of numpy": (np.int64(3), 3),
    "truth": (np.bool_(True), True),
}


@pytest.mark.parametrize("what", SAME)
def test_two_ways_to_write_an_argument_have_one_fingerprint(what):
    first, second = SAME[what]
    assert canonical("ip_adapter_image", first) == canonical("ip_adapter_image", second)


@pytest.mark.parametrize(
    "value", [object(), {1, 2}, lambda: 0, np.array([object()]), [object()], {"a": object()}, b"a"]
)
def test_an_object_without_readable_content_is_refused(value):
    with pytest.raises(UsageError, match=r"whose content a calibration cannot hold; give a number, a text, a picture"):
        canonical("ip_adapter_image", value)
    with pytest.raises(UsageError, match="whose content a calibration cannot hold"):
        Setup.of(stable_diffusion(), {"ip_adapter_image": value})


def test_not_a_number_is_refused():
    with pytest.raises(UsageError, match=r"got nan for eta; give a finite number"):
        Setup.of(stable_diffusion(), {"eta": float("nan")})
    with pytest.raises(UsageError, match=r"got inf for eta; give a finite number"):
        Setup.of(stable_diffusion(), {"eta": float("inf")})
    with pytest.raises(UsageError, match=r"got nan for cross_attention_kwargs\['scale'\]"):
        Setup.of(stable_diffusion(), {"cross_attention_kwargs": {"scale": np.float32("nan")}})


def test_a_callback_of_diffusers_is_refused_because_it_changes_guidance():
    pipe = stable_diffusion()
    family = family_of(pipe)
    with pytest.raises(UsageError, match="got callback_on_step_end of type SDCFGCutoffCallback, whose content"):
        family.sampling({"callback_on_step_end": SDCFGCutoffCallback(cutoff_step_ratio=0.4)}, defaults_of(pipe))
    # a function of the user's own may show progress
    assert family.sampling({"callback_on_step_end": lambda *_: {}}, defaults_of(pipe)).options == {}


@pytest.mark.parametrize("value", [torch.ones(2).to("meta"), torch.eye(2).to_sparse()])
def test_a_tensor_that_cannot_be_read_is_refused(value):
    with pytest.raises(UsageError, match=r"got ip_adapter_image, a tensor on .* whose values cannot be read"):
        canonical("ip_adapter_image", [value])


def test_a_file_of_a_picture_is_its_content(tmp_path):
    file = tmp_path / "control.png"
    RED.save(file)
    red = canonical("control_image", [str(file)])
    BLUE.save(file)
    assert canonical("control_image", [str(file)]) != red
    RED.save(tmp_path / "other.png")
    assert canonical("control_image", [str(tmp_path / "other.png")]) == red
    # a prompt is a text, whatever it says
    assert canonical("negative_prompt", str(file)) == str(file)
    with pytest.raises(UsageError, match=r"got image=.*, whose content may change under its address"):
        canonical("image", "https://example.org/a.png")


@pytest.mark.parametrize("make", MAKERS[:4])
def test_a_negative_prompt_is_the_same_as_a_list_and_as_a_text(make):
    pipe = make()
    written = ["a blue star", ["a blue star"], ["a blue star"] * 3, ("a blue star", "a blue star")]
    found = [Setup.of(pipe, {"negative_prompt": value}).fingerprint["options"] for value in written]
    assert found == [{"negative_prompt": "a blue star"}] * 4
    assert Setup.of(pipe, {"negative_prompt": "a red star"}).fingerprint["options"] != found[0]


def test_an_empty_negative_prompt_changes_nothing_where_it_is_the_default():
    assert Setup.of(stable_diffusion(), {"negative_prompt": ""}).sampling.options == {}
    # SDXL has zeros instead
    assert Setup.of(stable_diffusion_xl(), {"negative_prompt": ""}).sampling.options == {"negative_prompt": ""}


@pytest.mark.parametrize("make", MAKERS)
def test_an_argument_that_the_pipeline_does_not_take_is_refused(make):
    pipe = make()
    with pytest.raises(
        UsageError, match=rf"a {type(pipe).__name__} takes no guidance_scal, tarot; .*num_inference_steps"
    ):
        Setup.of(pipe, {"tarot": 1, "guidance_scal": 3.0})


@pytest.mark.parametrize("make", MAKERS)
def test_an_argument_that_the_library_gives_is_refused(make):
    pipe = make()
    given = sorted(defaults_of(pipe).keys() & NEUTRAL)
    assert {"generator", "output_type"} <= {*given}
    for name in given:
        with pytest.raises(UsageError, match=rf"got {name}, which the library gives for every image"):
            Setup.of(pipe, {name: [1]})


def test_the_same_arguments_are_refused_by_the_verbs_before_anything_is_generated(pipe, calibration):
    from cryptomnesia import calibrate, detect, localize

    for name, value in {"generator": torch.Generator(), "prompt": "a", "latents": torch.zeros(1)}.items():
        for verb in (
            lambda **call: detect(pipe, "a red circle", calibration=calibration, **call),
            lambda **call: localize(pipe, "a red circle", localizers="curvature", **call),
            lambda **call: calibrate(pipe, [f"a red circle {number}" for number in range(100)], **call),
        ):
            with pytest.raises(UsageError, match=name):
                verb(**{name: value})


def test_different_values_for_different_images_are_refused():
    with pytest.raises(UsageError, match="got 2 values of negative_prompt; give one that holds for all images"):
        Setup.of(stable_diffusion(), {"negative_prompt": ["a", "b"]})


def test_arguments_that_equal_their_default_are_no_settings():
    pipe = stable_diffusion()
    defaults = {
        name: value
        for name, value in defaults_of(pipe).items()
        if value not in (None, inspect.Parameter.empty) and name not in NEUTRAL
    }
    assert Setup.of(pipe, defaults).fingerprint == Setup.of(pipe, {}).fingerprint
    assert Setup.of(pipe, {"guidance_rescale": 0.0, "clip_skip": None}).sampling.options == {}
    assert Setup.of(pipe, {"guidance_rescale": 0.7}).sampling.options == {"guidance_rescale": 0.7}
    # the model's own size is the default as well
    assert Setup.of(pipe, {"height": 16, "width": 16}).fingerprint == Setup.of(pipe, {}).fingerprint


@pytest.mark.parametrize("before", [{}, {"disable": True}, {"desc": "steps", "disable": False}])
def test_the_progress_bar_of_a_pipeline_is_put_back(before):
    pipe = stable_diffusion()
    pipe.set_progress_bar_config(**before)
    with silent(pipe):
        assert pipe._progress_bar_config == {**before, "disable": True}
    assert pipe._progress_bar_config == before
    with pytest.raises(ZeroDivisionError), silent(pipe):
        1 / 0  # noqa: B018
    assert pipe._progress_bar_config == before
