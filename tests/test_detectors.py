import math
from dataclasses import replace

import pytest
import torch

from cryptomnesia import (
    Collapse,
    CurvatureDifference,
    GuidanceMagnitude,
    ScoreDifference,
    Stability,
    UsageError,
    generate,
    watch,
)
from cryptomnesia.detectors import DETECTORS, SIGNALS, Drift, LastGuidance, MapMean, MapSignal, Reference
from cryptomnesia.localizers import DiagonalEstimator, Watched
from cryptomnesia.pipelines.families import adapter_for
from cryptomnesia.statistics import auc
from cryptomnesia.tracing.trajectory import Norms, Trajectory
from cryptomnesia.testing.oracles import FiniteSet, Gaussian
from cryptomnesia.testing.miniatures import PROMPTS, SAMPLING, call_oracle, oracle_pipeline, stable_diffusion


def trajectory(delta, guidance=None, complete=True):
    delta = torch.tensor(delta)
    guidance = torch.full_like(delta, torch.nan) if guidance is None else torch.tensor(guidance)
    steps = delta.shape[1] + (not complete)
    return Trajectory(tuple(range(steps)), Norms(delta, delta, delta, guidance, delta), {}, torch.empty(0), complete)


def test_stability_is_the_largest_deviation_so_far():
    reference = Reference.fit(trajectory([[1.0, 10.0], [3.0, 14.0]]).norms)
    torch.testing.assert_close(reference.delta.mean, torch.tensor([2.0, 12.0]))
    # deviations √2 and 2√2: z-scores (4−2)/√2 = √2 and (10−12)/2√2 = −1/√2
    running = Stability(reference).running(trajectory([[4.0, 10.0], [2.0, 12.0]]))
    torch.testing.assert_close(running, torch.tensor([[2**0.5, 2**0.5], [0.0, 0.0]]))
    torch.testing.assert_close(Stability(reference).score(trajectory([[2.0, 16.0]])), torch.tensor([2**0.5]))


def test_stability_cannot_tell_from_a_run_cut_short():
    reference = Reference.fit(trajectory([[1.0, 10.0], [3.0, 14.0]]).norms)
    assert Stability(reference).score(trajectory([[4.0]], complete=False)).isnan().all()


def test_stability_refuses_a_run_of_another_length():
    reference = Reference.fit(trajectory([[1.0, 10.0], [3.0, 14.0]]).norms)
    with pytest.raises(UsageError, match="the run has 3 evaluations, the calibration 2"):
        Stability(reference).score(trajectory([[1.0, 1.0, 1.0]]))


def test_drift_is_the_largest_deviation_of_the_mean_logarithm():
    # logarithms 0 and 2, so mean 1 and deviation √2, at the second evaluation; up to the third 0 and 3
    e = math.e
    reference = Reference.fit(trajectory([[9.0, 1.0, 1.0], [9.0, e**2, e**4]]).norms)
    runs = trajectory([[1.0, e**3, e**2], [float("nan"), e, e**-4]])
    # logarithms 3 and 2 have the means 3 and 2.5, 1 and −4 the means 1 and −1.5; less than usual counts a third
    expected = torch.tensor([[0.0, 2**0.5, 2**0.5], [0.0, 0.0, 3 / 4.5**0.5 / 3]])
    torch.testing.assert_close(Drift(reference).running(runs), expected)
    torch.testing.assert_close(Drift(reference).score(runs), expected[:, -1])
    assert Drift(reference).score(trajectory([[1.0, 1.0]], complete=False)).isnan().all()
    with pytest.raises(UsageError, match="the run has 2 evaluations, the calibration 3"):
        Drift(reference).score(trajectory([[1.0, 1.0]]))


def test_guidance_magnitude_averages_the_first_steps():
    seen = trajectory([[0.0, 0.0, 0.0]], [[3.0, 1.0, 2.0]])
    assert GuidanceMagnitude().score(seen).item() == 2.0
    assert GuidanceMagnitude(steps=1).score(seen).item() == 3.0
    assert GuidanceMagnitude(steps=1).running(seen).tolist() == [[3.0, 3.0, 3.0]]
    assert GuidanceMagnitude().running(seen).tolist() == [[3.0, 2.0, 2.0]]
    assert LastGuidance().score(seen).item() == 2.0
    assert LastGuidance().running(seen).tolist() == [[3.0, 1.0, 2.0]]


def test_guidance_magnitude_cannot_tell_without_guidance():
    assert GuidanceMagnitude().score(trajectory([[0.0, 0.0]])).isnan().all()
    assert LastGuidance().score(trajectory([[0.0, 0.0]])).isnan().all()
    assert LastGuidance().score(trajectory([[0.0]], [[1.0]], complete=False)).isnan().all()


def test_guidance_last_ranks_as_the_mean_of_score_differences_does(pipe):
    (batch,) = generate(pipe, PROMPTS[:8], range(8), SAMPLING, keep=(-1,))
    maps = ScoreDifference().map(Watched(batch.trajectory, adapter_for(pipe).denoiser()))
    scores = LastGuidance().score(batch.trajectory)
    assert maps.mean(dim=(1, 2)).argsort().tolist() == scores.argsort().tolist()


def test_the_mean_of_a_map_is_taken_while_the_run_goes_on(pipe):
    signals = [SIGNALS["collapse"], SIGNALS["score-difference"]]
    told = []

    def look(done):
        told.append({name: values.tolist() for name, values in seen.trajectory.signals.items()})

    arguments = adapter_for(pipe).arguments(PROMPTS[:3], SAMPLING)
    with watch(pipe, keep="all", signals=signals, after_step=look) as seen:
        pipe(**arguments, generator=[torch.Generator().manual_seed(seed) for seed in range(3)])
    # of three evaluations collapse looks at the first, the score difference at the last
    assert [set(each) for each in told] == [{"collapse"}, {"collapse"}, {"collapse", "score-difference"}]
    view = adapter_for(pipe).denoiser()
    for each in signals:
        maps = each.localizer.map(Watched(seen.trajectory, view))
        torch.testing.assert_close(seen.trajectory.signals[each.name], maps.mean(dim=(1, 2)))
    collapse = MapMean(Collapse(step=0.3), 3)
    assert (collapse.earliest, MapMean(ScoreDifference(), 3).earliest) == (1, 3)
    running = MapMean(ScoreDifference(), 3).running(seen.trajectory)
    assert running[:, :2].eq(0).all()
    assert torch.equal(running[:, 2], seen.trajectory.signals["score-difference"])
    assert torch.equal(collapse.score(seen.trajectory), seen.trajectory.signals["collapse"])


def test_signals_change_no_picture_and_depend_on_no_batch(pipe):
    (plain,) = generate(pipe, PROMPTS[:4], range(4), SAMPLING)
    (whole,) = generate(pipe, PROMPTS[:4], range(4), SAMPLING, signals=[*SIGNALS.values()])
    assert torch.equal(plain.images, whole.images)
    assert torch.equal(plain.trajectory.norms.delta, whole.trajectory.norms.delta)
    (alone,) = generate(pipe, PROMPTS[2:3], [2], SAMPLING, signals=[*SIGNALS.values()])
    for name in SIGNALS:
        value = alone.trajectory.signals[name]
        torch.testing.assert_close(whole.trajectory.signals[name][2:3], value, rtol=1e-3, atol=1e-4)
        assert torch.equal(whole.trajectory.rows([2]).signals[name], whole.trajectory.signals[name][2:3])


def test_the_mean_of_a_map_cannot_tell_what_it_did_not_see(pipe):
    collapse = DETECTORS["collapse"](Reference.fit(trajectory([[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]]).norms))
    assert collapse.score(trajectory([[1.0, 1.0, 1.0]])).isnan().all()  # nobody took it
    assert collapse.score(trajectory([[1.0, 1.0]], complete=False)).isnan().all()
    with pytest.raises(UsageError, match="the run has 2 evaluations, the calibration 3"):
        collapse.score(trajectory([[1.0, 1.0]]))


@pytest.mark.parametrize("localizer", [ScoreDifference(), CurvatureDifference(-1), Collapse(1)])
def test_a_picture_that_breaks_takes_no_other_with_it(pipe, localizer):
    (batch,) = generate(pipe, PROMPTS[:3], range(3), SAMPLING, keep="all")
    view = adapter_for(pipe).denoiser()
    whole = MapSignal(localizer)(batch.trajectory, view)
    step = batch.trajectory.step(localizer.evaluations[-1])
    cond = replace(step.cond, value=step.cond.value.clone())
    cond.value[1] = torch.nan
    steps = batch.trajectory.steps | {step.index: replace(step, cond=cond)}
    means = MapSignal(localizer)(replace(batch.trajectory, steps=steps), view)
    assert means.isnan().tolist() == [False, True, False]
    torch.testing.assert_close(means[[0, 2]], whole[[0, 2]], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("engine", ["finite", "reverse", "forward"])
def test_maps_are_made_in_inference_mode_too(engine):
    signal = MapSignal(Collapse(estimator=DiagonalEstimator(engine=engine)))
    (batch,) = generate(stable_diffusion(), PROMPTS[:2], range(2), SAMPLING, signals=[signal])
    with torch.inference_mode():
        # loaded there, too
        (again,) = generate(stable_diffusion(), PROMPTS[:2], range(2), SAMPLING, signals=[signal])
    torch.testing.assert_close(again.trajectory.signals["collapse"], batch.trajectory.signals["collapse"])


@pytest.fixture(scope="module")
def oracle_runs():
    """Trajectories of a Gaussian, a single planted image, and a Gaussian that is nearly one, with two baselines."""
    torch.manual_seed(0)
    size = 16
    wide = torch.ones(size, dtype=torch.float64)
    gaussian = Gaussian(
        mean=torch.stack([torch.zeros(size), 0.3 * torch.randn(size)]).double(),
        basis=torch.eye(size, dtype=torch.float64).repeat(2, 1, 1),
        variances=torch.stack([wide, 0.8 * wide]),
    )
    planted = 1.5 * torch.randn(1, 1, 4, 4)
    memorizer = FiniteSet((torch.randn(64, 1, 4, 4), planted))
    narrow = Gaussian(
        mean=torch.stack([torch.zeros(size), planted.flatten()]).double(),
        basis=gaussian.basis,
        variances=torch.stack([wide, 1e-4 * wide]),
    )
    runs = []
    for oracle in (gaussian, memorizer, narrow):
        pipe = oracle_pipeline(oracle)
        with watch(pipe, signals=[*SIGNALS.values()]) as seen:
            latents = call_oracle(pipe, which=1, seeds=range(60))
        runs.append(seen.trajectory)
    torch.testing.assert_close(latents[:4], planted.expand(4, -1, -1, -1), atol=0.5, rtol=0)
    return runs


@pytest.mark.parametrize("name", DETECTORS)
def test_every_detector_separates_the_oracles(name, oracle_runs):
    ordinary, memorized, narrow = oracle_runs
    if name == "curvature-difference":
        # late in the run one of a finite set of pictures is certain without the caption, too
        memorized = narrow
    reference = Reference.fit(ordinary.rows([*range(30)]).norms)
    detector = DETECTORS[name](reference)
    assert detector.name == name
    low = detector.score(ordinary.rows([*range(30, 60)])).numpy()
    assert auc(detector.score(memorized).numpy(), low) > 0.95


def test_moments_need_two_images():
    with pytest.raises(UsageError, match="got 1 reference images"):
        Reference.fit(trajectory([[1.0]]).norms)
