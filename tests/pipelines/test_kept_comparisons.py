"""What a fingerprint keeps from one call to the next never hides a change."""

import copy
import functools
import gc
import weakref

import diffusers
import pytest
import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from cryptomnesia.pipelines.contents import parts
from cryptomnesia.pipelines.contents.alterations import _COMPARED
from cryptomnesia.pipelines.contents.parts import same_vocabulary, tokenizer_identity
from cryptomnesia.pipelines.contents.walk import Walk
from cryptomnesia.pipelines.contents.weights import _state
from cryptomnesia.pipelines.fingerprint import fingerprint
from cryptomnesia.testing.miniatures import SAMPLING, flux, stable_diffusion, stable_diffusion_3


@pytest.fixture
def model():
    return stable_diffusion()


def block(pipe):
    return pipe.unet.mid_block.resnets[0]


def attention(pipe):
    return next(module for module in pipe.unet.modules() if isinstance(module, Attention))


def an_equal_number_of_another_type(pipe):
    block(pipe).output_scale_factor = 1.0


def a_truth_in_the_place_of_one(pipe):
    block(pipe).output_scale_factor = True


def an_attribute_more(pipe):
    block(pipe).gain = 2.0


def an_attribute_less(pipe):
    del block(pipe).output_scale_factor


def two_names_exchanged(pipe):
    held = vars(pipe.unet.conv_in)
    held["stride"], held["kernel_size"] = held["kernel_size"], held["stride"]


class LouderBlock(ResnetBlock2D):
    def forward(self, *args, **kwargs):
        return 1.1 * super().forward(*args, **kwargs)


def another_class(pipe):
    block(pipe).__class__ = LouderBlock


def a_module_replaced(pipe):
    pipe.unet.conv_norm_out = nn.Identity()


def a_module_replaced_past_torch(pipe):
    pipe.unet._modules["conv_norm_out"] = nn.Identity()


def a_module_less(pipe):
    pipe.unet._modules["conv_norm_out"] = None


def a_module_more(pipe):
    block(pipe).add_module("second", nn.SiLU())


def two_modules_exchanged(pipe):
    mid = pipe.unet.mid_block
    mid.resnets[0], mid.resnets[1] = mid.resnets[1], mid.resnets[0]


def louder(module, args, output):
    return 1.1 * output


def a_hook(pipe):
    pipe.unet.conv_in.register_forward_hook(louder)


def a_hook_before(pipe):
    pipe.unet.conv_in.register_forward_pre_hook(lambda module, args: (1.1 * args[0],))


def a_forward_of_its_own(pipe):
    layer = pipe.unet.conv_in
    layer.forward = functools.partial(torch.nn.functional.conv2d, weight=layer.weight, padding=1)


def an_object_changed_inside(pipe):
    attention(pipe).processor.gain = 2.0


def another_processor(pipe):
    class Processor:
        def __call__(self, attn, hidden_states, *args, **kwargs):
            return hidden_states

    attention(pipe).processor = Processor()


def a_list_changed_inside(pipe):
    block(pipe).gains.append(2.0)


def dropout_in_training(pipe):
    block(pipe).dropout.train()


def a_buffer_beside_the_weights(pipe):
    pipe.text_encoder.register_buffer("offsets", torch.ones(3), persistent=False)


def a_weight_through_data(pipe):
    pipe.unet.conv_in.bias.data[0] += 1.0


def a_column_of_weights_negated(pipe):
    pipe.unet.mid_block.attentions[0].proj_in.weight.data[:, 5].neg_()


def biases_negated_in_two_modules(pipe):
    for number in (0, 1):
        pipe.unet.mid_block.resnets[number].conv1.bias.data[1].neg_()


def a_weight_of_another_name(pipe):
    held = pipe.unet.conv_in._parameters
    held["offset"] = held.pop("bias")


def weights_of_two_modules_exchanged(pipe):
    first, second = (pipe.unet.mid_block.resnets[number].conv1 for number in (0, 1))
    first.weight, second.weight = second.weight, first.weight


def weights_that_a_module_gives_otherwise(pipe):
    pipe.unet.conv_in._register_state_dict_hook(lambda module, state, *_: state.pop("conv_in.bias"))


def one_weight_in_half_precision(pipe):
    pipe.unet.conv_in.bias.data = pipe.unet.conv_in.bias.data.half()


def an_entry_of_the_configuration(pipe):
    dict.__setitem__(pipe.unet.config, "act_fn", "gelu")


def an_entry_of_the_schedulers_configuration(pipe):
    dict.__setitem__(pipe.scheduler.config, "clip_sample_range", 7.0)


def levels_of_the_scheduler(pipe):
    pipe.scheduler.alphas_cumprod[3] *= 0.5


def an_attribute_of_the_scheduler(pipe):
    pipe.scheduler.init_noise_sigma = 1.5


CHANGES = [
    value for name, value in globals().items() if callable(value) and getattr(value, "__module__", "") == __name__
]
CHANGES = [
    change for change in CHANGES if not isinstance(change, type) and change not in (model, block, attention, louder)
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_between_two_looks_is_seen(change, model):
    block(model).gains = [1.0]
    block(model).dropout.p = 0.5
    usual = [fingerprint(model, SAMPLING) for _ in range(3)][-1]
    change(model)
    found = fingerprint(model, SAMPLING)
    assert found != usual
    # the same as somebody sees who never looked before
    assert fingerprint(copy.deepcopy(model), SAMPLING) == found


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (Attention, "forward"),
        (ResnetBlock2D, "forward"),
        (nn.Conv2d, "_conv_forward"),
        (nn.Module, "_call_impl"),
        (torch.nn.functional, "scaled_dot_product_attention"),
        (diffusers.UNet2DConditionModel, "forward"),
        (diffusers.StableDiffusionPipeline, "prepare_latents"),
        (diffusers.DDIMScheduler, "step"),
        (diffusers.DDIMScheduler, "set_timesteps"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_function_replaced_between_two_looks_is_seen_and_so_is_its_return(owner, name, model, monkeypatch):
    usual = [fingerprint(model, SAMPLING) for _ in range(3)][-1]
    replaced = getattr(owner, name)

    def other(*args, **kwargs):
        return replaced(*args, **kwargs)

    other.cryptomnesia_fingerprint = "other"
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, other)
        assert fingerprint(model, SAMPLING) != usual
    assert fingerprint(model, SAMPLING) == usual


def test_what_was_altered_is_compared_again(model):
    usual = fingerprint(model, SAMPLING)
    block(model).output_scale_factor = 2.0
    altered = [fingerprint(model, SAMPLING) for _ in range(2)]
    assert altered[0] == altered[1] != usual
    block(model).output_scale_factor = 1
    assert fingerprint(model, SAMPLING) == usual


def test_the_vocabulary_of_a_copy_is_read_once(model, monkeypatch):
    usual = tokenizer_identity(model.tokenizer)
    copied = copy.deepcopy(model.tokenizer)
    same_vocabulary(model.tokenizer, copied)
    monkeypatch.setattr(parts, "_probed", lambda tokenizer: pytest.fail("the vocabulary was read again"))
    assert tokenizer_identity(copied) == usual
    monkeypatch.undo()
    copied.add_tokens(["<concept>"])
    changed = tokenizer_identity(copied)
    assert changed["vocabulary"] != usual["vocabulary"]
    assert tokenizer_identity(copy.deepcopy(copied)) == changed
    # of a tokenizer that nobody looked at, nothing is taken as known
    fresh = copy.deepcopy(copied)
    same_vocabulary(copy.deepcopy(copied), fresh)
    assert tokenizer_identity(fresh) == changed


def test_kept_comparisons_keep_no_network():
    pipe = stable_diffusion()
    fingerprint(pipe, SAMPLING)
    network = weakref.ref(pipe.unet)
    assert network() in _COMPARED
    del pipe
    gc.collect()
    assert network() is None


@pytest.mark.parametrize("make", [stable_diffusion, stable_diffusion_3, flux], ids=lambda make: make.__name__)
def test_a_walk_is_that_of_torch(make):
    for network in make().components.values():
        if isinstance(network, nn.Module):
            walk = Walk.through(network)
            assert [*walk.modules] == [*network.named_modules()]
            assert not walk.repeated
            state = network.state_dict()
            found = _state(walk)
            assert [*found] == [*state]
            assert all(torch.equal(found[name], state[name]) for name in state)


def test_a_module_at_two_places_has_its_weights_at_both():
    layer = nn.Linear(2, 2)
    network = nn.ModuleDict({"one": layer, "other": layer})
    walk = Walk.through(network)
    assert [*walk.modules] == [*network.named_modules()]
    assert walk.repeated
    assert [*_state(walk)] == [*network.state_dict()]
