import copy
import threading

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from torch._dynamo import eval_frame

from cryptomnesia import calibrate, guard, watch
from cryptomnesia.testing.miniatures import CALL, PROMPTS, stable_diffusion
from guarded_calls import call


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
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
