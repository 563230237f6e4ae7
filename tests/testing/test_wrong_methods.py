"""For every check there is a wrong method that fails it, and a right one that passes all."""

import unittest
from dataclasses import dataclass, field, replace
from itertools import count

import pytest
import torch

from cryptomnesia import UsageError
from cryptomnesia.detectors import Detector, Moments
from cryptomnesia.localizers import Localizer, Map
from cryptomnesia.localizers.base import finite, over_channels, wide
from cryptomnesia.mitigations import Mitigation, Remade
from cryptomnesia.mitigations.base import withheld
from cryptomnesia.testing import CheckError, check_detector, check_localizer, check_mitigation, run_checks
from cryptomnesia.testing.setups import SETUPS

WORKS = [f"it works or is refused: {name}" for name in SETUPS]


def fails(checks, name, message):
    """See that the named check fails with a message, and does not count as skipped."""
    (check,) = (check for check in checks if check.name == name)
    with pytest.raises(Exception, match=message) as raised:
        check()
    assert not isinstance(raised.value, unittest.SkipTest)


@dataclass(frozen=True)
class RightDetector(Detector):
    weight: float = 1.0

    name = "right"
    summary = "How unusual the updates of the latents are."
    reads = frozenset({"delta"})

    def running(self, runs, references):
        unusual = Moments.of(references.norms["delta"]).z_scores(runs.norms["delta"]).abs()
        return self.weight * unusual.cummax(dim=1).values


@dataclass(frozen=True)
class Count:
    """A signal: always the same number."""

    name = "count"
    evaluations = (0,)

    def describe(self):
        return "the number one"

    def __call__(self, trajectory, denoiser):
        return torch.ones(len(trajectory))


@dataclass(frozen=True)
class Size:
    """A norm: of the latents."""

    name = "size"

    def __call__(self, step, latents, previous):
        return latents.flatten(1).float().norm(dim=1)


class WithAddress(RightDetector):
    def describe(self):
        return f"right({object.__repr__(self)})"


class WithoutSettings(RightDetector):
    def describe(self):
        return self.name


@dataclass(frozen=True)
class Remembering(RightDetector):
    scores: list = field(default_factory=list, repr=False)

    def running(self, runs, references):
        self.scores.append(len(runs))
        return super().running(runs, references)


class ReadingMore(RightDetector):
    def running(self, runs, references):
        return super().running(runs, references) + runs.norms["x0"]


class ReadingTheUnknown(RightDetector):
    reads = frozenset({"delta", "omega"})


class ReadingLatents(RightDetector):
    def running(self, runs, references):
        return super().running(runs, references) + runs.latents.flatten(1).norm(dim=1, keepdim=True)


class RestlessSignal(Count):
    counter = count()

    def describe(self):
        return f"the number one, for the {next(self.counter)}-th time"


class WithRestlessSignal(RightDetector):
    signals = (RestlessSignal(),)


class ByPlace(RightDetector):
    def running(self, runs, references):
        return super().running(runs, references) + torch.arange(len(runs))[:, None]


class ByBatch(RightDetector):
    def running(self, runs, references):
        scores = super().running(runs, references)
        return scores - scores.mean(dim=0)


class Foreseeing(RightDetector):
    def running(self, runs, references):
        scores = super().running(runs, references)
        return scores[:, -1:].expand_as(scores)


class NumPySize(Size):
    def __call__(self, step, latents, previous):
        return torch.from_numpy(latents.flatten(1).numpy()).norm(dim=1)


class InSinglePrecision(RightDetector):
    norms = (NumPySize(),)


class Fragile(RightDetector):
    def running(self, runs, references):
        if runs.norms["delta"].isnan().any():
            raise ValueError("got NaN")
        return super().running(runs, references)


class Touching(Size):
    def __call__(self, step, latents, previous):
        latents.mul_(1.01)
        return super().__call__(step, latents, previous)


class Disturbing(RightDetector):
    norms = (Touching(),)


class Hooking(Count):
    def __call__(self, trajectory, denoiser):
        denoiser.module.register_forward_hook(lambda *_: None)
        return super().__call__(trajectory, denoiser)


class LeavingHooks(RightDetector):
    signals = (Hooking(),)


class UpsideDown(RightDetector):
    def running(self, runs, references):
        return -super().running(runs, references)


class ReadingGuidance(RightDetector):
    reads = frozenset({"guidance"})

    def running(self, runs, references):
        return runs.norms["guidance"]


@pytest.mark.parametrize(
    ("detector", "check", "message"),
    [
        (WithAddress(), "it describes itself", "an address in memory|described differently each time"),
        (WithoutSettings(), "a changed setting is described", "described alike with another weight"),
        (Remembering(), "it holds settings only", "keeps something of its runs"),
        (ReadingMore(), "it reads what it declares", "uses norms that it does not name"),
        (ReadingTheUnknown(), "it reads what it declares", "reads omega, which nothing records"),
        (ReadingLatents(), "it needs nothing but what is stored", "with and without their tensors"),
        (WithRestlessSignal(), "a calibration keeps what it reads", "calibrated the number one, for the"),
        (ByPlace(), "the order of the images does not matter", "the same runs in another order"),
        (ByBatch(), "the batch size does not matter", "the score of image 0 alone"),
        (Foreseeing(), "a score uses no later evaluation", "scores after 1 of 4 evaluations"),
        (InSinglePrecision(), "it works in half precision", "unsupported ScalarType BFloat16"),
        (Fragile(), "one broken image breaks no other", "got NaN"),
        (Disturbing(), "the picture stays identical", "pictures are others when norms or signals of right"),
        (LeavingHooks(), "nothing is left behind", "leaves hooks on the networks changed behind"),
        (UpsideDown(), "the memorizer scores above the Gaussian", "is 0.00; it should be above 0.9"),
        (ReadingGuidance(), WORKS[2], "accepts the set-up, but cannot tell of ordinary runs"),
    ],
)
def test_every_check_of_detectors_finds_its_mistake(detector, check, message):
    fails(check_detector(detector), check, message)


class LeavingTracesInFailure(RightDetector):
    """Its signal asks the network and takes its hook away, unless the network fails."""

    @dataclass(frozen=True)
    class Asking(Count):
        def __call__(self, trajectory, denoiser):
            step = trajectory.step(0)
            hook = denoiser.module.register_forward_hook(lambda *_: None)
            denoiser(step.cond.x, step.level, step.cond_inputs)
            hook.remove()
            return super().__call__(trajectory, denoiser)

    signals = (Asking(),)


def test_traces_are_looked_for_after_failures_of_the_network_too():
    fails(check_detector(LeavingTracesInFailure()), "nothing is left behind", "after the network failed, leaves hooks")


@dataclass(frozen=True)
class RightLocalizer(Localizer):
    scale: float = 1.0

    name = "right"
    summary = "How far the branches are apart."
    baseline = "unconditional"

    def map(self, watched):
        step = watched.trajectory.step(self.step)
        other = watched.against(step).epsilon(step.cond.x, step.level)
        values = over_channels(finite(wide(step.cond.epsilon - other)) ** 2, step.cond_inputs)
        return Map(self.finished(values, watched))

    def finished(self, values, watched):
        return self.scale * values


class WithoutBaseline(RightLocalizer):
    baseline = "caption"


class WithoutScale(RightLocalizer):
    def describe(self):
        return self.name


@dataclass(frozen=True)
class RememberingMaps(RightLocalizer):
    maps: list = field(default_factory=list, repr=False)

    def finished(self, values, watched):
        self.maps.append(values)
        return values


class MapByPlace(RightLocalizer):
    def finished(self, values, watched):
        return values + torch.arange(len(values))[:, None, None]


class MapByBatch(RightLocalizer):
    def finished(self, values, watched):
        return values - values.amin(dim=(0, 1, 2))


class MapInSinglePrecision(RightLocalizer):
    def finished(self, values, watched):
        watched.trajectory.step(-1).cond.x.numpy()
        return values


class Hiding(RightLocalizer):
    def map(self, watched):
        step = watched.trajectory.step(self.step)
        other = watched.against(step).epsilon(step.cond.x, step.level)
        return Map(over_channels(wide(step.cond.epsilon - other).nan_to_num() ** 2, step.cond_inputs))


class Training(RightLocalizer):
    def finished(self, values, watched):
        with torch.no_grad():
            for weight in watched.denoiser.module.parameters():
                weight.mul_(1.01)
        return values


class SeedingMaps(RightLocalizer):
    def finished(self, values, watched):
        torch.manual_seed(0)
        return values


class Inverted(RightLocalizer):
    def finished(self, values, watched):
        return 1 / (1e-6 + values)


class Negative(RightLocalizer):
    def finished(self, values, watched):
        return values - 1


class Flat(RightLocalizer):
    def finished(self, values, watched):
        return values.flatten(1)


@pytest.mark.parametrize(
    ("localizer", "check", "message"),
    [
        (WithoutBaseline(), "it describes itself", "the baseline of right is 'caption'"),
        (WithoutScale(), "a changed setting is described", "described alike with another scale"),
        (RememberingMaps(), "it holds settings only", "keeps something of its runs"),
        (MapByPlace(), "the order of the images does not matter", "the same images in another order"),
        (MapByBatch(), "the batch size does not matter", "the map of image . alone"),
        (MapInSinglePrecision(), "it works in half precision", "unsupported ScalarType BFloat16"),
        (Hiding(), "one broken image breaks no other", "maps an image whose latents are NaN"),
        (Training(), "the picture stays identical", "generated after a map by right are others"),
        (Training(), "nothing is left behind", "the networks' weights"),
        (SeedingMaps(), "nothing is left behind", "the global random state"),
        (Inverted(), "the map is higher where the model remembers", "it should be above 0.9"),
        (Negative(), WORKS[0], "returned negative values"),
        (Flat(), WORKS[0], r"returned values of shape \(\d+, 64\)"),
    ],
)
def test_every_check_of_localizers_finds_its_mistake(localizer, check, message):
    fails(check_localizer(localizer), check, message)


@dataclass(frozen=True)
class RightMitigation(Mitigation):
    seed: int = 7

    name = "right"
    summary = "The same call with another seed."

    def remake(self, flagged, studio):
        if not flagged:
            return []
        output, verdicts = studio.make([self.call(image, at) for at, image in enumerate(flagged)])
        return [
            Remade(replace(image.verdict, action="mitigated"), output, place)
            if self.shown(verdict, verdicts)
            else Remade(withheld(image.verdict))
            for place, (image, verdict) in enumerate(zip(flagged, verdicts, strict=True))
        ]

    def call(self, image, place):
        seed = self.seed + image.verdict.image
        return {**image.call, "generator": torch.Generator().manual_seed(seed)}

    def shown(self, verdict, verdicts):
        return verdict.clean


class WithListOfNorms(RightMitigation):
    alters = ["delta"]  # noqa: RUF012


@dataclass(frozen=True)
class RememberingImages(RightMitigation):
    seeds: list = field(default_factory=list, repr=False)

    def call(self, image, place):
        self.seeds.append(place)
        return super().call(image, place)


class Backwards(RightMitigation):
    def remake(self, flagged, studio):
        return super().remake(flagged, studio)[::-1]


class ShowingAll(RightMitigation):
    def shown(self, verdict, verdicts):
        return True


class ShowingTheUnflagged(RightMitigation):
    def shown(self, verdict, verdicts):
        return not verdict.flagged


class ShowingByTheFirst(RightMitigation):
    def shown(self, verdict, verdicts):
        return verdicts[0].clean


class SeedByPlace(RightMitigation):
    def call(self, image, place):
        return {**image.call, "generator": torch.Generator().manual_seed(place)}


class Correcting(RightMitigation):
    """Proposes other norms than it says, and gives evaluations as a list."""

    alters = frozenset({"delta"})

    def correction(self, references):
        return self

    def steer(self, step, solver):
        return None

    def as_proposed(self, runs):
        return replace(runs, norms={**runs.norms, "delta": 2 * runs.norms["delta"]})

    def outcome(self, row):
        return "none", ()


class CorrectingInSecret(Correcting):
    alters = frozenset()


class CorrectingWithoutSeverity(Correcting):
    def outcome(self, row):
        return "none", (1,)


class MakingNumPy(RightMitigation):
    def remake(self, flagged, studio):
        remade = super().remake(flagged, studio)
        for answer in remade:
            if answer.output is not None:
                answer.output.images.numpy()
        return remade


class Seeding(RightMitigation):
    def call(self, image, place):
        torch.manual_seed(place)
        return super().call(image, place)


class NeedingPrompts(RightMitigation):
    def call(self, image, place):
        return {**super().call(image, place), "prompt": [f"{image.call['prompt'][0]} in the ring"]}


@pytest.mark.parametrize(
    ("mitigation", "check", "message"),
    [
        (WithListOfNorms(), "it describes itself", "give it a frozenset with the names of norms"),
        (RememberingImages(), "it holds settings only", "keeps something of its runs"),
        (Backwards(), "every image is answered in order", "in the order of the images"),
        (ShowingAll(), "an image that is still flagged is not shown", "'the check flags every image'"),
        (ShowingTheUnflagged(), "an image that cannot be judged is not shown", "'could not tell"),
        (ShowingByTheFirst(), "of several images the clean ones are shown", "'the check flags every image'"),
        (SeedByPlace(), "the batch size does not matter", "image 1 made again alone"),
        (CorrectingInSecret(), "a correction says what it did", "proposes other delta; name these norms in `alters`"),
        (CorrectingWithoutSeverity(), "a correction says what it did", "with the severity `none`"),
        (MakingNumPy(), "it works in half precision", "unsupported ScalarType BFloat16"),
        (Seeding(), "nothing is left behind", "the global random state"),
        (NeedingPrompts(), WORKS[-1], "prompt"),
    ],
)
def test_every_check_of_mitigations_finds_its_mistake(mitigation, check, message):
    fails(check_mitigation(mitigation), check, message)


class Forgetting(RightMitigation):
    """Described alike with every seed."""

    def describe(self):
        return self.name


def test_a_setting_of_a_mitigation_has_to_be_described():
    fails(check_mitigation(Forgetting()), "a changed setting is described", "described alike with another seed")


@pytest.mark.parametrize(
    ("check", "method"),
    [
        (check_detector, RightDetector()),
        (check_localizer, RightLocalizer()),
        (check_mitigation, RightMitigation()),
        (check_mitigation, Correcting()),
    ],
)
def test_right_methods_pass_all_checks(check, method):
    assert set(run_checks(check(method)).values()) == {"passed"}


def test_all_failures_are_reported_together():
    checks = [check for check in check_detector(ReadingTheUnknown()) if check.name in ("it describes itself", *READS)]
    with pytest.raises(ExceptionGroup, match="1 of 2 checks failed: it reads what it declares") as raised:
        run_checks(checks)
    assert raised.group_contains(CheckError, match="reads omega")


READS = ("it reads what it declares",)


def test_known_failures_are_skipped_with_their_reason():
    (check,) = (
        check
        for check in check_detector(ReadingTheUnknown(), known_failures={READS[0]: "omega comes later"})
        if check.name in READS
    )
    assert str(check) == READS[0]
    with pytest.raises(unittest.SkipTest, match="known failure: omega comes later"):
        check()
    assert run_checks([check]) == {READS[0]: "skipped: known failure: omega comes later"}


def test_a_known_failure_that_passes_is_an_error():
    (check,) = (
        check for check in check_detector(RightDetector(), known_failures={READS[0]: "why"}) if check.name in READS
    )
    with pytest.raises(CheckError, match=r"is a known failure \(why\), but it passes; take it off the list"):
        check()


def test_a_known_failure_has_to_be_a_check():
    with pytest.raises(UsageError, match="unknown check 'it flies' as a known failure; known are it describes itself"):
        check_detector(RightDetector(), known_failures={"it flies": "it does not"})


def test_what_is_no_method_is_refused_at_once():
    with pytest.raises(UsageError, match="as localizer, which lacks"):
        check_localizer(RightDetector())
    with pytest.raises(UsageError, match="unknown detector 'rihgt'"):
        check_detector("rihgt")
