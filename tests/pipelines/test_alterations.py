import functools
import threading

import diffusers
import pytest
import torch
from diffusers.models.attention_processor import Attention

from cryptomnesia import UsageError
from cryptomnesia.pipelines.contents.parts import scheduler_alterations
from cryptomnesia.pipelines.fingerprint import VERSION, differences, fingerprint, weights_digest
from cryptomnesia.testing.miniatures import CALL, SAMPLING, OracleUNet, flux, stable_diffusion, stable_diffusion_3
from cryptomnesia.testing.oracles import FiniteSet
from cryptomnesia.tracing.watching import watch


@pytest.fixture
def model():
    return stable_diffusion()


def found(pipe):
    return fingerprint(pipe, SAMPLING).get("altered", {})


def test_a_network_as_it_was_loaded_is_not_altered(model, tmp_path):
    usual = fingerprint(model, SAMPLING)
    assert usual.keys() & {"altered", "adapters", "dtypes", "autocast", "scheduler_altered"} == set()
    model.save_pretrained(tmp_path)
    assert fingerprint(type(model).from_pretrained(tmp_path), SAMPLING) == usual
    half = fingerprint(type(model).from_pretrained(tmp_path, dtype=torch.float16), SAMPLING)
    assert differences(usual, half) == ["dtype is float16, calibrated float32"]


def test_a_fingerprint_draws_no_random_numbers_and_leaves_other_threads_alone(model):
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    empty = []
    thread = threading.Thread(target=lambda: empty.append(torch.empty(2).device.type))
    fingerprint(model, SAMPLING)
    thread.start()
    thread.join()
    assert torch.equal(torch.rand(3), expected)
    assert empty == ["cpu"]


def test_an_alteration_is_named_with_its_value_and_its_places(model):
    usual = fingerprint(model, SAMPLING)
    model.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    assert found(model)["unet"].keys() == {"s1", "s2", "b1", "b2"}
    assert found(model)["unet"]["s1"].startswith("0.9 in 2 modules from up_blocks.0 on (")
    model.disable_freeu()
    model.unet.conv_norm_out.eps = 0.5
    model.unet.mid_block.resnets[0].output_scale_factor = 2.0
    assert differences(usual, fingerprint(model, SAMPLING)) == [
        "altered.unet.eps is 0.5 in conv_norm_out, calibrated None",
        "altered.unet.output_scale_factor is 2.0 in mid_block.resnets.0, calibrated None",
    ]


def test_of_many_differences_a_message_names_the_first_of_each_section(model):
    usual = fingerprint(model, SAMPLING)
    other = {**usual, "options": {f"option_{number}": number for number in range(9)}}
    words = differences(usual, other)
    assert len(words) == 5
    assert words[-1] == "5 more in options"


def test_a_calibration_of_an_older_version_is_named_as_that(model):
    usual = fingerprint(model, SAMPLING)
    old = {"records": usual["records"], "steps": 4}
    assert differences(old, usual) == [f"its fingerprints are of version 1, this library's of {VERSION}"]


def louder(self, attn, hidden_states, *args, **kwargs):
    return hidden_states * 1.1


def test_a_method_of_a_library_that_was_replaced_is_seen(model, monkeypatch):
    monkeypatch.setattr(Attention, "forward", louder)
    assert found(model)["unet"]["Attention.forward"].partition(" ")[0].endswith("test_alterations.louder")
    factors = [1.1]
    monkeypatch.setattr(Attention, "forward", lambda self, hidden_states, *_, **__: hidden_states * factors[0])
    with pytest.raises(UsageError, match=r"the unet's Attention\.forward is .*, which holds factors of type"):
        found(model)


PIPELINE = diffusers.StableDiffusionPipeline
SOURCE = "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion"
ENCODE = PIPELINE.encode_prompt


def other_captions(self, *args, **kwargs):
    found, negative = ENCODE(self, *args, **kwargs)
    return found * 1.3, negative


@functools.wraps(ENCODE)
def disguised(self, *args, **kwargs):
    return other_captions(self, *args, **kwargs)


def attention(q, k, v, **_):
    return v


@pytest.mark.parametrize(
    ("target", "made", "key"),
    [
        (f"{SOURCE}.StableDiffusionPipeline.encode_prompt", other_captions, "pipe.encode_prompt"),
        # the function has the module and the name of the one that it takes the place of
        (f"{SOURCE}.StableDiffusionPipeline.encode_prompt", disguised, "pipe.encode_prompt"),
        (f"{SOURCE}.StableDiffusionPipeline.do_classifier_free_guidance", property(lambda self: False), "pipe.do_"),
        (f"{SOURCE}.randn_tensor", lambda shape, **_: torch.zeros(shape), "pipe.randn_tensor"),
        ("torch.nn.functional.scaled_dot_product_attention", attention, "global.scaled_dot_product_attention"),
    ],
)
def test_what_took_the_place_of_a_function_of_a_library_is_seen(model, monkeypatch, target, made, key):
    usual = fingerprint(model, SAMPLING)
    monkeypatch.setattr(target, made)
    (words,) = differences(usual, fingerprint(model, SAMPLING))
    assert words.startswith(key)
    monkeypatch.undo()
    assert fingerprint(model, SAMPLING) == usual


def test_a_function_that_is_disguised_as_a_method_is_told_from_another_one(model):
    prints = []
    for factor in (1.2, 1.5):

        @functools.wraps(ENCODE)
        def louder_captions(*args, by=factor, **kwargs):
            return args, by

        model.encode_prompt = louder_captions
        prints.append(fingerprint(model, SAMPLING)["pipe"]["encode_prompt"])
    assert prints[0] != prints[1]


def test_what_no_code_of_the_pipeline_reads_does_not_count(model):
    usual = fingerprint(model, SAMPLING)
    model.lock, model.label, model.hf_device_map = threading.Lock(), "first", {"unet": 0}
    model.vae.decode = torch.compile(model.vae.decode, backend="eager")
    model.decode_latents = torch.compile(model.decode_latents, backend="eager")
    assert differences(usual, fingerprint(model, SAMPLING)) == []
    model.vae_scale_factor = 4
    assert differences(usual, fingerprint(model, SAMPLING)) == ["pipe.vae_scale_factor is 4, calibrated 2"]

    class Mine(PIPELINE):
        pass

    model.__class__ = Mine
    with pytest.raises(UsageError, match="the pipeline's lock is an object of type lock"):
        fingerprint(model, SAMPLING)


def test_a_safety_checker_does_not_count_but_is_part_of_an_audits_model(model):
    usual, digest = fingerprint(model, SAMPLING), weights_digest(model)
    model.register_modules(safety_checker=torch.nn.Linear(2, 2))
    assert fingerprint(model, SAMPLING) == usual
    assert weights_digest(model) != digest


def test_constants_of_a_function_are_part_of_it(model):
    prints = []
    for factor in (1.1, 1.2, 1.1):
        handle = model.unet.conv_out.register_forward_hook(lambda module, args, output, by=factor: output * by)
        prints.append(found(model))
        handle.remove()
    assert prints[0] == prints[2] != prints[1]


def test_an_object_says_what_it_is(model):
    class Hook:
        cryptomnesia_fingerprint = "louder by a tenth"

        def __call__(self, module, args, output):
            return output * 1.1

    model.unet.conv_out.register_forward_hook(Hook())
    assert found(model) == {"unet": {"forward_hook": "louder by a tenth in conv_out"}}


def test_another_thread_may_attach_a_hook_meanwhile(model):
    class Hook:
        @property
        def cryptomnesia_fingerprint(self):
            # stands for another thread, which does this while the hooks are looked at
            model.unet.conv_out.register_forward_hook(no_op)
            return "louder by a tenth"

        def __call__(self, module, args, output):
            return output * 1.1

    def no_op(module, args, output): ...

    no_op.cryptomnesia_fingerprint = ""
    model.unet.conv_out.register_forward_hook(Hook())
    model.unet.conv_out.register_forward_hook(no_op)
    assert found(model) == {"unet": {"forward_hook": "louder by a tenth in conv_out"}}


def test_hooks_for_all_modules_count(model):
    usual = fingerprint(model, SAMPLING)
    handle = torch.nn.modules.module.register_module_forward_hook(lambda module, args, output: output)
    words = differences(usual, fingerprint(model, SAMPLING))
    handle.remove()
    assert [word.partition(" ")[0] for word in words] == ["global.forward_hook"]


def test_dropout_counts_in_training_mode():
    pipe = flux()
    pipe.text_encoder_2.train()
    assert found(pipe).keys() == {"text_encoder_2"}
    assert found(pipe)["text_encoder_2"]["training"].startswith("True in ")


def test_the_number_format_of_every_network_and_of_autocast_is_held(model):
    usual = fingerprint(model, SAMPLING)
    with torch.autocast("cpu", torch.bfloat16):
        assert differences(usual, fingerprint(model, SAMPLING)) == ["autocast is bfloat16, calibrated None"]
    model.text_encoder.to(torch.bfloat16)
    words = differences(usual, fingerprint(model, SAMPLING))
    assert words[0] == "dtypes.text_encoder is bfloat16, calibrated None"


def test_a_patched_step_is_seen_behind_a_watch(model):
    step = model.scheduler.step
    model.scheduler.step = lambda *args, **kwargs: step(*args, **kwargs)
    with watch(model), pytest.raises(UsageError, match="the scheduler's step is the function"):
        fingerprint(model, SAMPLING)


SOLVERS = [
    diffusers.HeunDiscreteScheduler,
    diffusers.KDPM2AncestralDiscreteScheduler,
    diffusers.KDPM2DiscreteScheduler,
    diffusers.LCMScheduler,
    diffusers.SASolverScheduler,
    diffusers.UniPCMultistepScheduler,
    diffusers.FlowMatchHeunDiscreteScheduler,
    diffusers.FlowMatchLCMScheduler,
]


@pytest.mark.parametrize("kind", SOLVERS)
def test_what_a_run_leaves_in_a_scheduler_does_not_count(kind):
    flow = "Flow" in kind.__name__
    pipe = stable_diffusion_3() if flow else stable_diffusion()
    pipe.scheduler = kind.from_config(pipe.scheduler.config)
    assert scheduler_alterations(pipe.scheduler, {}) == {}
    pipe("a red circle", num_inference_steps=3, height=16, width=16, output_type="latent")
    assert scheduler_alterations(pipe.scheduler, {}) == {}
    if not flow:
        pipe.scheduler.alphas_cumprod = pipe.scheduler.alphas_cumprod * 0.999
        assert "alphas_cumprod" in scheduler_alterations(pipe.scheduler, {})


def test_what_a_run_writes_into_a_configuration_does_not_count(model):
    model.scheduler = diffusers.DPMSolverSinglestepScheduler.from_config(model.scheduler.config)
    before = fingerprint(model, SAMPLING)
    model("a red circle", **CALL, output_type="latent")
    assert model.scheduler.config.lower_order_final
    assert fingerprint(model, SAMPLING) == before


def test_a_network_of_ones_own_is_compared_as_a_whole(model):
    def with_oracle(images):
        model.register_modules(unet=OracleUNet(FiniteSet((images, images)), 4, 8))
        return fingerprint(model, SAMPLING)

    first, again, other = (with_oracle(torch.full((2, 4, 8, 8), value)) for value in (0.5, 0.5, 0.7))
    assert first == again
    assert [words.partition(" ")[0] for words in differences(first, other)] == ["altered.unet.structure"]
    assert weights_digest(model)
