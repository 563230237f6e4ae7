import copy
import sys
import threading
import time

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from torch._dynamo import eval_frame

from cryptomnesia import UsageError, calibrate, guard, watch
from cryptomnesia.localizers.bright_ending import end_positions
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.pipelines.tokenizers import TOKENIZERS
from cryptomnesia.testing.miniatures import CALL, PROMPTS, WIDTH, stable_diffusion, stable_diffusion_xl
from cryptomnesia.tracing.generation import cut_off
from guarded_calls import call


@pytest.fixture
def contention(monkeypatch):
    """Threads change places as often as Python allows."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def run_together(*works):
    """Run functions in one thread each, and raise the first error of any of them."""
    errors = []
    start = threading.Barrier(len(works))

    def run(work):
        start.wait()
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def sharing(pipe):
    """Another pipeline around the same networks, text encoders and tokenizers, with a scheduler of its own."""
    scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    more = {"requires_safety_checker": False} if "safety_checker" in pipe.components else {}
    other = type(pipe)(**{**pipe.components, "scheduler": scheduler}, **more)
    other.set_progress_bar_config(disable=True)
    return other


def slowed(tokenizer):
    """A copy of a tokenizer that lets other threads run after it set its padding, and before it uses it."""

    class Slowed(type(tokenizer)):
        def set_truncation_and_padding(self, *args, **kwargs):
            super().set_truncation_and_padding(*args, **kwargs)
            time.sleep(0.001)

    made = copy.deepcopy(tokenizer)
    made.__class__ = Slowed
    return made


LENGTHS = ["a", "a red circle", "a blue star on a red ground and a green ring", "a red bar and a blue ring"]
"""Prompts of several lengths, which a tokenizer pads in several ways."""


@pytest.mark.parametrize("make", [stable_diffusion, stable_diffusion_xl])
def test_guarded_pipelines_that_share_tokenizers_do_not_see_each_other(make, contention):
    first = make()
    for name in TOKENIZERS:
        if hasattr(first, name):
            setattr(first, name, slowed(getattr(first, name)))
    pipes = [first, sharing(first), sharing(first)]
    assert pipes[0].tokenizer is pipes[1].tokenizer
    assert pipes[0].text_encoder is pipes[1].text_encoder
    calibration = calibrate(first, PROMPTS, batch_size=34, **CALL)
    prompts = [[*LENGTHS[number:], *LENGTHS[:number]] for number in range(len(pipes))]
    calls = 5

    def images(pipe, captions, seed):
        return call(pipe, captions, seeds=[seed] * len(captions))

    alone = [images(pipe, captions, 5) for pipe, captions in zip(pipes, prompts, strict=True)]
    found = [[] for _ in pipes]

    def work(number):
        def guarded():
            with guard(pipes[number], calibration, fpr=0.5) as guarding:
                for _ in range(calls):
                    found[number].append(images(pipes[number], prompts[number], 5))
                    assert [verdict.prompt for verdict in guarding.verdicts] == prompts[number]

        return guarded

    run_together(*(work(number) for number in range(len(pipes))))
    for made, expected in zip(found, alone, strict=True):
        assert len(made) == calls
        for image in made:
            np.testing.assert_array_equal(image, expected)


def test_prompts_are_checked_while_another_thread_generates(contention):
    """A check reads the tokenizer in another way than the pipeline: without padding."""
    pipe = stable_diffusion()
    pipe.tokenizer = slowed(pipe.tokenizer)
    setup = Setup.of(pipe, CALL)
    expected = call(pipe, LENGTHS, seeds=[0] * 4)
    ends = end_positions(pipe, LENGTHS).tolist()
    done = threading.Event()
    checks = []

    def generate():
        try:
            for _ in range(12):
                np.testing.assert_array_equal(call(pipe, LENGTHS, seeds=[0] * 4), expected)
        finally:
            done.set()

    def check():
        while not done.is_set():
            assert not cut_off(setup, LENGTHS)
            assert end_positions(pipe, LENGTHS).tolist() == ends
            checks.append(1)

    run_together(generate, check)
    assert checks


def test_a_guard_leaves_the_tokenizers_as_they_were(calibration):
    pipe = stable_diffusion()
    tokenizer, configured = pipe.tokenizer, dict(pipe.config)
    state = tokenizer.backend_tokenizer.to_str()
    guarding = guard(pipe, calibration, fpr=0.5).attach()
    assert pipe.tokenizer is not tokenizer
    call(pipe)
    assert tokenizer.backend_tokenizer.to_str() == state
    guarding.detach()
    assert pipe.tokenizer is tokenizer
    assert dict(pipe.config) == configured
    guarding.attach().detach()
    assert pipe.tokenizer is tokenizer


def test_a_tokenizer_that_the_user_replaced_meanwhile_stays(calibration):
    pipe = stable_diffusion()
    other = copy.deepcopy(pipe.tokenizer)
    with guard(pipe, calibration, fpr=0.5):
        call(pipe)
        pipe.tokenizer = other
        call(pipe)
    assert pipe.tokenizer is other


@pytest.mark.parametrize("change", ["loaded", "unloaded"])
def test_a_textual_inversion_that_is_loaded_or_unloaded_meanwhile_stays_so(calibration, change):
    def made():
        pipe = stable_diffusion()
        # all miniatures share one tokenizer
        pipe.tokenizer = copy.deepcopy(pipe.tokenizer)
        return pipe

    def load(pipe):
        vectors = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(0))
        pipe.load_textual_inversion({"toy": vectors}, token="<toy>")

    usual, pipe = made(), made()
    if change == "loaded":
        load(usual)
        with guard(pipe, calibration, fpr=0.5):
            load(pipe)
    else:
        load(pipe)
        with guard(pipe, calibrate(pipe, PROMPTS, batch_size=34, **CALL), fpr=0.5):
            pipe.unload_textual_inversion()
    assert pipe.tokenizer.get_vocab() == usual.tokenizer.get_vocab()
    assert np.array_equal(call(pipe, "a <toy> circle"), call(usual, "a <toy> circle"))


def test_a_guard_that_cannot_copy_a_tokenizer_is_not_attached(calibration):
    class Uncopied:
        def __deepcopy__(self, memo):
            raise TypeError("no copies")

    pipe = stable_diffusion()
    guarding = guard(pipe, calibration, fpr=0.5)
    pipe.tokenizer = Uncopied()
    with pytest.raises(TypeError, match="no copies"):
        guarding.attach()
    assert type(pipe) is StableDiffusionPipeline


def test_two_pipelines_in_two_threads_do_not_see_each_other(calibration):
    """They even share their networks, and each has a scheduler of its own."""
    first = stable_diffusion()
    second = StableDiffusionPipeline(
        **{**first.components, "scheduler": DDIMScheduler.from_config(first.scheduler.config, clip_sample=False)},
        requires_safety_checker=False,
    )
    second.set_progress_bar_config(disable=True)
    prompts = {first: "a red circle", second: "a blue star"}
    alone = {}
    for pipe, prompt in prompts.items():
        with guard(pipe, calibration, fpr=0.5) as guarding:
            call(pipe, prompt)
        alone[pipe] = guarding.verdicts[0].score
    found = {pipe: [] for pipe in prompts}

    def work(pipe):
        with guard(pipe, calibration, fpr=0.5) as guarding:
            for _ in range(5):
                call(pipe, prompts[pipe])
                found[pipe].append(guarding.verdicts[0].score)

    threads = [threading.Thread(target=work, args=(pipe,)) for pipe in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for pipe, scores in found.items():
        assert scores == pytest.approx([alone[pipe]] * 5, rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)])
def test_guards_by_maps_in_two_threads_do_not_see_each_other(dtype):
    pipes = [stable_diffusion().to(dtype), stable_diffusion().to(dtype)]
    fitted = calibrate(pipes[0], PROMPTS, detectors=["collapse"], batch_size=34, **CALL)
    before = torch.backends.cuda.matmul.fp32_precision, eval_frame._stance.stance
    found = {pipe: [] for pipe in pipes}

    def work(pipe):
        with guard(pipe, fitted, detector="collapse", fpr=0.5) as guarding:
            for _ in range(5):
                call(pipe)
                found[pipe].append(guarding.verdicts[0].score)

    work(pipes[0])
    alone = found[pipes[0]].pop()
    found[pipes[0]].clear()
    threads = [threading.Thread(target=work, args=(pipe,)) for pipe in pipes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for scores in found.values():
        assert scores == pytest.approx([alone] * 5, rel=1e-3, abs=1e-4)
    assert (torch.backends.cuda.matmul.fp32_precision, eval_frame._stance.stance) == before


def test_two_threads_may_share_a_network_compiled_in_place():
    """Entered and left in the order a-b-a-b, which no nesting of blocks would give."""
    pipe = stable_diffusion()
    pipe.unet.compile(backend="eager")
    inner = vars(pipe.unet)["_compiled_call_impl"]
    other = copy.copy(pipe)
    other.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    first, second = watch(pipe), watch(other)
    first.__enter__()
    seen = second.__enter__()
    first.__exit__(None, None, None)
    call(other)
    assert seen.trajectory.complete
    second.__exit__(None, None, None)
    assert vars(pipe.unet)["_compiled_call_impl"] is inner


def test_every_thread_has_a_pipeline_and_a_guard_of_its_own(calibration, contention):
    """As a service makes them for every request, with the tokenizers of the first pipeline."""
    first = stable_diffusion()
    first.tokenizer = slowed(first.tokenizer)
    captions = [[*LENGTHS[number:], *LENGTHS[:number]] for number in range(3)]
    alone = [call(first, each, seeds=[5] * 4) for each in captions]
    with guard(first, calibration, fpr=0.5) as guarding:

        def request(number):
            def answer():
                for _ in range(3):
                    scheduler = DDIMScheduler.from_config(first.scheduler.config, clip_sample=False)
                    made = StableDiffusionPipeline.from_pipe(first, scheduler=scheduler, requires_safety_checker=False)
                    made.set_progress_bar_config(disable=True)
                    with guarding.also(made) as mine:
                        np.testing.assert_array_equal(call(made, captions[number], seeds=[5] * 4), alone[number])
                        assert [verdict.prompt for verdict in mine.verdicts] == captions[number]

            return answer

        run_together(*map(request, range(3)))
        assert guarding.verdicts == ()


def test_copies_in_several_threads(calibration, contention):
    first = stable_diffusion()
    first.tokenizer = slowed(first.tokenizer)
    alone = [call(first, LENGTHS, seeds=[seed] * 4) for seed in range(3)]
    heard = []
    with guard(first, calibration, fpr=0.5, on_verdict=heard.append) as guarding:

        def request(number):
            def answer():
                other = copy.copy(first)
                other.scheduler = DDIMScheduler.from_config(first.scheduler.config, clip_sample=False)
                for _ in range(3):
                    np.testing.assert_array_equal(call(other, LENGTHS, seeds=[number] * 4), alone[number])

            return answer

        run_together(*map(request, range(3)))
    assert len(heard) == 3 * 3 * 4
    # the newest call may have ended before another one
    assert len(guarding.verdicts) in (0, 4)


def test_a_pipeline_without_a_guard_is_stopped_in_another_thread(calibration):
    first = stable_diffusion()
    other = sharing(first)
    entered, stopped = threading.Event(), threading.Event()

    def guarded():
        with guard(first, calibration, fpr=0.5) as guarding:
            call(first)
            entered.set()
            assert stopped.wait(60)
            # the refusal in the other thread leaves them alone
            assert len(guarding.verdicts) == 1

    def bare():
        assert entered.wait(60)
        try:
            with pytest.raises(UsageError, match="not guarded"):
                call(other)
        finally:
            stopped.set()

    run_together(guarded, bare)
