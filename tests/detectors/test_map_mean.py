from dataclasses import dataclass, replace

import pytest
import torch

from cryptomnesia import Collapse, CurvatureDifference, ScoreDifference, UsageError, calibrate, watch
from cryptomnesia.detectors import MapMean, MapSignal, detector
from cryptomnesia.detectors.map_mean import during_run
from cryptomnesia.errors import NotFiniteError
from cryptomnesia.localizers import DiagonalEstimator, Map, Watched
from cryptomnesia.localizers.base import Localizer
from cryptomnesia.pipelines.families import family_of
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.registry import create, entries
from cryptomnesia.testing.miniatures import CALL, PROMPTS, SAMPLING, stable_diffusion
from cryptomnesia.tracing.generation import generate
from cryptomnesia.tracing.trajectory import joined, joined_maps
from runs import trajectory

LOCALIZERS = [found for name in entries("localizer") if during_run(found := create("localizer", name))]
SIGNALS = [MapSignal(localizer) for localizer in LOCALIZERS]


def test_every_localizer_that_needs_no_captions_and_no_checkpoint_is_a_detector(pipe):
    assert {localizer.name for localizer in LOCALIZERS} == {
        "collapse",
        "curvature",
        "curvature-difference",
        "guidance-map",
        "local-critical-scale",
        "score-difference",
        "score-difference-filtered",
        "settled-detail",
    }
    setup = Setup(pipe, SAMPLING)
    for localizer in LOCALIZERS:
        made = detector(localizer.name, setup)
        assert made == MapMean(localizer)
        assert made.name == localizer.name
        assert made.reads == {localizer.name}
        assert made.requires == localizer.requires
        assert made.observes == localizer.observes
        assert made.cost(setup) == localizer.cost(setup)
        assert localizer.describe() in made.describe()
        setup.check([made])
    with pytest.raises(
        UsageError, match="the map collapse-empty needs captions or a checkpoint, which are not known while"
    ):
        setup.check([detector("collapse-empty")])


def test_the_map_is_made_while_the_run_goes_on(pipe):
    signals = [MapSignal(Collapse()), MapSignal(ScoreDifference())]
    looks = []

    def look(done):
        looks.append({name: values.tolist() for name, values in seen.trajectory.signals.items()})

    arguments = family_of(pipe).arguments(PROMPTS[:3], SAMPLING)
    with watch(pipe, keep="all", signals=signals, after_step=look) as seen:
        pipe(**arguments, generator=[torch.Generator().manual_seed(seed) for seed in range(3)])
    # of three evaluations collapse looks at the first, the score difference at the last
    assert [set(look) for look in looks] == [{"collapse"}, {"collapse"}, {"collapse", "score-difference"}]
    view = family_of(pipe).denoiser()
    for signal in signals:
        maps = signal.localizer.map(Watched(seen.trajectory, view)).values
        torch.testing.assert_close(seen.trajectory.signals[signal.name], maps.cpu().float())
    collapse, difference = MapMean(Collapse(step=0.3)), MapMean(ScoreDifference())
    assert (collapse.earliest(3), difference.earliest(3)) == (1, 3)
    means = {name: maps.mean(dim=(1, 2)) for name, maps in seen.trajectory.signals.items()}
    running = difference.running(seen.trajectory, seen.trajectory)
    assert running[:, :2].eq(0).all()
    torch.testing.assert_close(running[:, 2], means["score-difference"])
    torch.testing.assert_close(collapse.score(seen.trajectory, seen.trajectory), means["collapse"])


def test_signals_change_no_picture_and_depend_on_no_batch(pipe):
    setup = Setup(pipe, SAMPLING)
    (plain,) = generate(setup, PROMPTS[:4], range(4))
    (whole,) = generate(setup, PROMPTS[:4], range(4), signals=SIGNALS)
    assert torch.equal(plain.images, whole.images)
    assert torch.equal(plain.trajectory.norms["delta"], whole.trajectory.norms["delta"])
    (alone,) = generate(setup, PROMPTS[2:3], [2], signals=SIGNALS)
    assert whole.trajectory.signals.keys() == {localizer.name for localizer in LOCALIZERS}
    for name, maps in whole.trajectory.signals.items():
        torch.testing.assert_close(maps[2:3], alone.trajectory.signals[name], rtol=1e-3, atol=1e-4)
        assert torch.equal(whole.trajectory.rows([2]).signals[name], maps[2:3])


def test_it_cannot_tell_what_it_did_not_see():
    collapse = detector("collapse")
    references = trajectory([[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]])
    # nobody asked for the map
    assert collapse.score(trajectory([[1.0, 1.0, 1.0]]), references).isnan().all()
    assert collapse.score(trajectory([[1.0, 1.0]], planned=3), references).isnan().all()
    with pytest.raises(UsageError, match="the run has 2 evaluations, the calibration 3"):
        collapse.score(trajectory([[1.0, 1.0]]), references)


@pytest.mark.parametrize("localizer", [ScoreDifference(), CurvatureDifference(-1), Collapse(1)])
def test_a_picture_that_breaks_takes_no_other_with_it(pipe, localizer):
    (batch,) = generate(Setup(pipe, SAMPLING), PROMPTS[:3], range(3), keep="all")
    view = family_of(pipe).denoiser()
    whole = MapSignal(localizer)(batch.trajectory, view)
    step = batch.trajectory.step(localizer.evaluations[-1])
    cond = replace(step.cond, value=step.cond.value.clone())
    cond.value[1] = torch.nan
    steps = batch.trajectory.steps | {step.index: replace(step, cond=cond)}
    maps = MapSignal(localizer)(replace(batch.trajectory, steps=steps), view)
    assert maps.isnan().flatten(1).all(dim=1).tolist() == [False, True, False]
    assert maps.isnan().flatten(1).any(dim=1).tolist() == [False, True, False]
    assert maps.shape == whole.shape
    torch.testing.assert_close(maps[[0, 2]], whole[[0, 2]], rtol=1e-3, atol=1e-4)
    found = replace(batch.trajectory, signals={localizer.name: maps})
    assert MapMean(localizer).score(found, found).isnan().tolist() == [False, True, False]


@dataclass(frozen=True)
class Failing(Localizer):
    """A map that can be computed for some images alone: those whose newest latents are large."""

    least: float = 0.0

    name = "failing"

    def map(self, watched):
        step = watched.trajectory.step(-1)
        if (step.sample.flatten(1).norm(dim=1) < self.least).any():
            raise NotFiniteError("on purpose")
        return Map(step.sample.square().sum(dim=1))


def test_batches_without_any_map_fit_to_others(pipe):
    """One batch an image, so that a broken image is a batch without maps, whose size nothing shows."""
    setup = Setup(pipe, SAMPLING)
    (batch,) = generate(setup, PROMPTS[:4], range(4), keep=(-1,))
    sizes = batch.trajectory.step().sample.flatten(1).norm(dim=1)
    signal = MapSignal(Failing(least=sizes.median().item()))
    runs = joined(
        [batch.trajectory for batch in generate(setup, PROMPTS[:4], range(4), batch_size=1, signals=[signal])]
    )
    assert runs.signals["failing"].shape == (4, 8, 8)
    broken = runs.signals["failing"].isnan().flatten(1).all(dim=1)
    assert broken.sum() == 1
    scores = MapMean(signal.localizer).score(runs, runs)
    assert torch.equal(scores.isnan(), broken)


def test_values_of_calls_are_joined():
    nothing, maps = torch.full((2, 1, 1), torch.nan), torch.ones(3, 4, 5)
    assert joined_maps([nothing, maps, nothing]).shape == (7, 4, 5)
    assert joined_maps([nothing, nothing]).shape == (4, 1, 1)
    assert joined_maps([torch.ones(2), torch.zeros(3)]).tolist() == [1, 1, 0, 0, 0]


def test_maps_that_are_never_finite_are_refused_as_a_detector(pipe):
    calibration = calibrate(pipe, PROMPTS, detectors=[MapMean(Failing(least=1e9))], batch_size=51, **CALL)
    with pytest.raises(UsageError, match="failing gives no score to 68 of the 68 reference runs; use another"):
        calibration.null(MapMean(Failing(least=1e9)))


@pytest.mark.parametrize("engine", ["finite", "reverse", "forward"])
def test_maps_are_made_in_inference_mode_too(engine):
    signal = MapSignal(Collapse(estimator=DiagonalEstimator(engine=engine)))
    (batch,) = generate(Setup(stable_diffusion(), SAMPLING), PROMPTS[:2], range(2), signals=[signal])
    with torch.inference_mode():
        # loaded there, too
        (again,) = generate(Setup(stable_diffusion(), SAMPLING), PROMPTS[:2], range(2), signals=[signal])
    torch.testing.assert_close(again.trajectory.signals["collapse"], batch.trajectory.signals["collapse"])
