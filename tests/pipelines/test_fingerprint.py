import copy
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from tokenizers import normalizers
from torch.nn import Parameter

from cryptomnesia import Sampling, UsageError
from cryptomnesia.pipelines.contents import weights as room
from cryptomnesia.pipelines.fingerprint import differences, fingerprint, weights_digest, weights_digests
from cryptomnesia.testing.miniatures import SAMPLING, stable_diffusion


@pytest.fixture
def reads(monkeypatch):
    """The number of times that weights were hashed."""
    read = room._read
    calls = []

    def counted(weights, notes=()):
        calls.append(len(weights))
        return read(weights, notes)

    monkeypatch.setattr(room, "_read", counted)
    return calls


@pytest.fixture
def model():
    return stable_diffusion()


def fresh(pipe):
    """The digests without what is kept from earlier calls."""
    parts = copy.deepcopy({name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)})
    return {name: room._read(sorted(part.state_dict().items())) for name, part in sorted(parts.items())}


def first_weight(pipe):
    return pipe.unet.conv_in.weight


def test_the_digest_survives_half_precision(pipe):
    digest = weights_digest(pipe)
    assert weights_digest(stable_diffusion().to(torch.float16)) == digest
    assert fingerprint(pipe, SAMPLING)["dtype"] == "float32"


def test_weights_are_hashed_once(model, reads):
    expected = weights_digests(model)
    assert len(reads) == 3
    for _ in range(3):
        assert weights_digests(model) == expected
        fingerprint(model, SAMPLING)
    assert len(reads) == 3
    # another pipeline with the same networks
    other = type(model)(**model.components, requires_safety_checker=False)
    assert weights_digests(other) == expected
    assert len(reads) == 3
    model.unet = torch.compile(model.unet, backend="eager")
    assert weights_digests(model) == expected
    assert len(reads) == 3


def in_place(pipe):
    with torch.no_grad():
        first_weight(pipe).mul_(1.5)


def through_data(pipe):
    first_weight(pipe).data.mul_(1.5)


def like_a_merged_lora(pipe):
    layer = pipe.unet.conv_in
    layer.weight.data += 0.1 * torch.ones_like(layer.weight)


def one_value_through_data(pipe):
    first_weight(pipe).data.view(-1)[17] += 0.125


def two_values_exchanged(pipe):
    values = first_weight(pipe).data.view(-1)
    values[[3, 10]] = values[[10, 3]]


def values_in_another_order(pipe):
    weight = first_weight(pipe)
    weight.data.copy_(weight.data.flip(0))


def through_numpy(pipe):
    first_weight(pipe).detach().numpy()[0] = 3.0


def new_data(pipe):
    weight = first_weight(pipe)
    weight.data = weight.data * 1.5


def new_parameter(pipe):
    pipe.unet.conv_in.weight = Parameter(1.5 * first_weight(pipe).detach())


def at_the_same_address(pipe):
    """Free the storage and take it for other values, as an allocator does."""
    weight = first_weight(pipe)
    storage = weight.data.untyped_storage()
    changed = 1.5 * weight.detach()
    pipe.unet.conv_in.weight = Parameter(torch.empty(0).set_(storage, 0, weight.shape, weight.stride()))
    pipe.unet.conv_in.weight.data.copy_(changed)


def load_state_dict(pipe):
    pipe.unet.load_state_dict({name: 1.5 * value for name, value in pipe.unet.state_dict().items()})


def load_and_assign(pipe):
    pipe.unet.load_state_dict({name: 1.5 * value for name, value in pipe.unet.state_dict().items()}, assign=True)


def another_network(pipe):
    other = stable_diffusion().unet
    in_place_on = next(other.parameters())
    with torch.no_grad():
        in_place_on.mul_(1.5)
    pipe.unet = other


def a_layer_replaced(pipe):
    pipe.unet.conv_in = torch.nn.Conv2d(4, 8, 3, padding=1)


def a_training_step(pipe):
    optimizer = torch.optim.SGD(pipe.unet.parameters(), lr=0.1)
    pipe.unet.conv_in.weight.sum().backward()
    optimizer.step()


def in_inference_mode(pipe):
    with torch.inference_mode():
        first_weight(pipe).mul_(1.5)


CHANGES = [
    in_place,
    through_data,
    like_a_merged_lora,
    one_value_through_data,
    two_values_exchanged,
    values_in_another_order,
    through_numpy,
    new_data,
    new_parameter,
    at_the_same_address,
    load_state_dict,
    load_and_assign,
    another_network,
    a_layer_replaced,
    a_training_step,
    in_inference_mode,
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_digest_is_never_stale(change, model, reads):
    before = weights_digests(model)
    change(model)
    after = weights_digests(model)
    # the unet alone was read again
    assert len(reads) == 4
    assert after["unet"] != before["unet"]
    assert {**after, "unet": ""} == {**before, "unet": ""}
    assert after == fresh(model)


def test_a_change_that_is_undone_is_seen_twice(model):
    before = weights_digests(model)
    weight = first_weight(model)
    saved = weight.detach().clone()
    weight.data += 1.0
    assert weights_digests(model) != before
    weight.data.copy_(saved)
    assert weights_digests(model) == before


def test_storage_that_is_used_again_gives_no_stale_digest(model):
    """A LoRA that is merged with several scales, each time in a new tensor at whatever address is free."""
    original = first_weight(model).detach().clone()
    for scale in (0.0, 0.5, 0.0, 1.0, 0.5, 0.25, 0.0):
        model.unet.conv_in.weight.data = original + scale
        assert weights_digests(model) == fresh(model)


@pytest.mark.parametrize("move", [lambda pipe: pipe.to(torch.float16), lambda pipe: pipe.to(torch.bfloat16)])
def test_weights_are_read_again_after_a_change_of_dtype(move, model, reads):
    before = weights_digests(model)
    move(model)
    assert weights_digests(model) == fresh(model)
    # fresh() counts as well
    assert len(reads) == 9
    model.to(torch.float32)
    assert weights_digests(model) == fresh(model)
    assert before.keys() == weights_digests(model).keys()


def test_networks_that_were_made_in_inference_mode_are_hashed_once_and_never_stale(reads):
    with torch.inference_mode():
        made = stable_diffusion()
        before = weights_digests(made)
        assert weights_digests(made) == before
        assert len(reads) == 3
        first_weight(made).mul_(1.5)
        after = weights_digests(made)
    assert after != before
    assert len(reads) == 4
    assert weights_digests(made) == after == fresh(made)


class Marked(torch.Tensor):
    """A tensor of another class, which hides what it holds."""


def test_tensors_of_other_classes_are_never_stale(model, reads):
    model.unet.register_buffer("marked", torch.ones(3).as_subclass(Marked))
    before = weights_digests(model)
    assert weights_digests(model) == before
    assert len(reads) == 3
    model.unet.marked.as_subclass(torch.Tensor)[0] = 5.0
    assert weights_digests(model) != before
    assert len(reads) == 4


ODD = {
    "empty": torch.empty(0),
    "a single number": torch.tensor(3.0),
    "three bytes": torch.tensor([1, 2, 3], dtype=torch.uint8),
    "booleans": torch.tensor([True, False, True]),
    "half precision": torch.arange(5, dtype=torch.float16),
    "double precision": torch.arange(5, dtype=torch.float64),
    "complex": torch.ones(3, dtype=torch.complex64),
    "a part of another tensor": torch.arange(100, dtype=torch.uint8)[3:14],
    "every second value": torch.arange(20.0)[::2],
    "transposed": torch.arange(12.0).view(3, 4).T,
    "expanded": torch.ones(1, 4).expand(5, 4),
    "channels last": torch.randn(2, 4, 3, 3).to(memory_format=torch.channels_last),
    "large": torch.randn(300_001),
    "large and transposed": torch.randn(700, 301).T,
    "large and channels last": torch.randn(40, 60, 9, 9).to(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("kind", ODD)
def test_checksums_see_every_value_that_the_digest_reads(kind):
    value = ODD[kind]
    step = max(1, value.numel() // room._VALUES)
    assert torch.equal(room._sampled(value), value.flatten()[::step])
    about, number = room._checksums([("a", value)])
    assert about == ("a", value.shape, value.dtype)
    assert room._checksums([("a", value.clone())]) == [about, number]
    for place in {0, value.numel() // step // 2, (value.numel() - 1) // step} if value.numel() else ():
        changed = value.clone(memory_format=torch.contiguous_format).flatten()
        changed[place * step] = ~changed[place * step] if value.dtype == torch.bool else changed[place * step] + 1
        assert room._checksums([("a", changed.view(value.shape))])[1] != number


def test_a_checksum_is_a_sum_with_odd_weights_on_every_device():
    """CPUs compute it as a product of vectors, whose overflow must not be an error of its own."""
    octets = torch.randint(0, 256, (8 * 1000,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mixed = [number ^ (number >> 29) for number in octets.view(torch.int64).tolist()]
    expected = sum(number * (2 * place + 1) for place, number in enumerate(mixed))
    assert (room._checksum(octets).item() - expected) % 2**64 == 0


def test_tensors_that_share_a_checksum_are_told_apart():
    one, other = torch.arange(6.0), torch.arange(6.0, 12)
    together = room._checksums([("a", one), ("b", other)])
    assert len(together) == 3
    assert room._checksums([("a", other), ("b", one)]) != together
    assert room._checksums([("a", one), ("b", other + torch.eye(6)[3])]) != together
    assert room._checksums([("a", torch.arange(5.0)), ("b", torch.arange(5.0, 12))]) != together
    assert room._checksums([("a", one.half()), ("b", other)]) != together


def test_many_small_tensors_share_several_checksums():
    """No checksum takes more values than one of a large tensor does, and a change of any of them is seen."""
    count = room._VALUES // room._SMALL
    weights = [(f"{number}", torch.randn(room._SMALL)) for number in range(2 * count + 1)]
    found = room._checksums(weights)
    sums = found[len(weights) :]
    assert len(sums) == 3
    for number, (_, value) in enumerate(weights):
        value[number] += 1
        changed = room._checksums(weights)[len(weights) :]
        assert [place for place in range(3) if changed[place] != sums[place]] == [number // count]
        sums = changed


def test_threads_compute_checksums_at_the_same_time():
    values = [torch.randn(count) for count in (200, 70_000, 131_000)]
    alone = [room._checksums([("a", value)]) for value in values]
    with ThreadPoolExecutor(len(values)) as threads:
        for _ in range(50):
            assert [*threads.map(lambda value: room._checksums([("a", value)]), values)] == alone


def test_weights_that_are_not_in_memory_are_refused(model):
    model.vae.to("meta")
    with pytest.raises(UsageError, match=r"weights of the vae are not in memory; load them, or offload them with"):
        weights_digests(model)


def test_settings_are_the_same_in_whatever_way_they_are_written(model):
    usual = fingerprint(model, SAMPLING)
    for same in (
        replace(SAMPLING, height=16, width=16),
        replace(SAMPLING, options={"negative_prompt": ""}),
        replace(SAMPLING, options={"eta": 0.0}),
    ):
        assert fingerprint(model, same) == usual
    for other in (
        replace(SAMPLING, height=32, width=32),
        replace(SAMPLING, options={"negative_prompt": "a"}),
        replace(SAMPLING, options={"eta": 1.0}),
        Sampling(steps=4, guidance=2.0),
        Sampling(steps=3, guidance=2.5),
    ):
        assert differences(usual, fingerprint(model, other))


def test_long_schedules_of_numbers_are_told_apart(model):
    found = []
    for last in (0.02, 0.03):
        betas = np.linspace(0.0001, 0.02, 2000)
        betas[1000] = last
        model.scheduler = DDIMScheduler(num_train_timesteps=2000, trained_betas=betas, clip_sample=False)
        found.append(fingerprint(model, SAMPLING))
    assert [words.split(" ")[0] for words in differences(*found)] == ["scheduler_config.trained_betas"]


def test_differences_are_named_with_both_values(model):
    usual = fingerprint(model, SAMPLING)
    assert differences(usual, usual) == []
    other = {**usual, "steps": 4, "weights": {**usual["weights"], "unet": "0" * 64}, "more": None}
    assert differences(usual, other) == [
        "steps is 4, calibrated 3",
        f"weights.unet is {'0' * 12}…, calibrated {usual['weights']['unet'][:12]}…",
    ]


def test_captions_that_are_cut_off_at_their_beginning_are_another_set_up():
    usual, pipe = stable_diffusion(), stable_diffusion()
    pipe.tokenizer = copy.deepcopy(pipe.tokenizer)
    pipe.tokenizer.truncation_side = "left"
    found = differences(fingerprint(usual, SAMPLING), fingerprint(pipe, SAMPLING))
    assert found == ["tokenizers.tokenizer.truncation_side is left, calibrated None"]


def test_a_tokenizer_that_is_changed_in_place_is_read_again():
    pipe = stable_diffusion()
    pipe.tokenizer = copy.deepcopy(pipe.tokenizer)
    before = fingerprint(pipe, SAMPLING)
    pipe.tokenizer.backend_tokenizer.normalizer = normalizers.Replace("red", "blue")
    assert any("tokenizers.tokenizer.vocabulary" in line for line in differences(before, fingerprint(pipe, SAMPLING)))
