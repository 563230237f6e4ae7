import pickle

import pytest
import torch

from cryptomnesia import UsageError, watch
from cryptomnesia.testing.miniatures import CALL, stable_diffusion
from cryptomnesia.tracing.trajectory import evaluation, joined
from runs import trajectory


@pytest.mark.parametrize(
    ("place", "count", "number"),
    [(0, 4, 0), (3, 4, 3), (-1, 4, 3), (-4, 4, 0), (0.0, 4, 0), (0.3, 10, 3), (0.29, 100, 29), (0.999, 4, 3)],
)
def test_places_are_numbers_or_shares_of_a_run(place, count, number):
    assert evaluation(place, count) == number


@pytest.mark.parametrize("place", [4, -5, 1.0, -0.1, float("nan")])
def test_places_outside_a_run_are_refused(place):
    with pytest.raises(UsageError, match="got the evaluation"):
        evaluation(place, 4)


@pytest.fixture(scope="module")
def seen():
    pipe = stable_diffusion()
    with watch(pipe, keep=(0, -1)) as seen:
        pipe(
            ["a red circle", "a blue star"],
            generator=[torch.Generator().manual_seed(seed) for seed in (0, 1)],
            output_type="latent",
            **CALL,
        )
    return seen.trajectory


def test_kept_steps_are_found_by_number_and_by_share(seen):
    assert {*seen.steps} == {0, 2}
    assert seen.step() is seen.step(2) is seen.step(-1) is seen.step(0.9)
    assert seen.step(0.1) is seen.step(0)
    with pytest.raises(UsageError, match=r"step 1 of 3 holds no tensors \(kept: 0, 2\); watch with keep=\(1,\)"):
        seen.step(1)


def test_all_predictions_of_a_step_share_their_sample(seen):
    for step in (seen.step(0), seen.rows([1]).step(0)):
        assert step.guided.x is step.cond.x is step.uncond.x


def test_rows_may_be_repeated_and_reordered(seen):
    twice = seen.rows([1, 0, 1])
    assert len(twice) == 3
    for name, values in seen.norms.items():
        assert torch.equal(twice.norms[name].nan_to_num(), values[[1, 0, 1]].nan_to_num())
    assert torch.equal(twice.step().sample, seen.step().sample[[1, 0, 1]])
    assert torch.equal(twice.latents, seen.latents[[1, 0, 1]])


def test_a_bare_trajectory_has_norms_and_signals_alone(seen):
    bare = seen.bare()
    assert bare.steps == {}
    assert bare.latents.shape == (2, 0)
    assert len(bare) == 2
    assert bare.norms is seen.norms
    assert bare.complete
    assert bare.evaluations == 3


def test_joined_trajectories_are_those_of_all_their_images():
    first = trajectory([[1.0, 2.0]], signals={"a": torch.ones(1, 2, 2)})
    second = trajectory([[3.0, 4.0], [5.0, 6.0]], signals={"a": torch.zeros(2, 2, 2)})
    both = joined([first, second])
    assert len(both) == 3
    assert both.complete
    assert both.norms["z"].tolist() == [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]
    assert both.signals["a"].mean(dim=(1, 2)).tolist() == [1.0, 0.0, 0.0]
    assert not joined([first, trajectory([[3.0, 4.0]], planned=3, signals={"a": torch.zeros(1, 2, 2)})]).complete


def test_captions_and_pipeline_follow_the_images_and_are_not_stored(pipe):
    with watch(pipe) as seen:
        pipe(["a red circle", "a blue star"], num_inference_steps=1, output_type="latent")
    run = seen.trajectory
    assert run.pipe is pipe
    assert run.prompts == ("a red circle", "a blue star")
    assert run.rows([1]).prompts == ("a blue star",)
    assert (run.bare().prompts, run.bare().pipe) == (None, None)
    assert (joined([run, run]).prompts, joined([run, run]).pipe) == (None, None)
    copied = pickle.loads(pickle.dumps(run))
    assert (copied.prompts, copied.pipe) == (run.prompts, None)
    assert "Pipeline" not in repr(run)
