"""The checks of a mitigation."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, get_args

import torch
from torch import Tensor

from cryptomnesia.calibration.judging import Judge
from cryptomnesia.calibration.recording import fitted
from cryptomnesia.calibration.stored import Calibration
from cryptomnesia.detectors import Detector, default_detector
from cryptomnesia.guarding.making import Maker
from cryptomnesia.localizers.mapping import maps_of, places
from cryptomnesia.mitigations import Correction, Flagged, Mitigation, Remade
from cryptomnesia.pipelines.call import silent
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.registry import create
from cryptomnesia.testing.checks import (
    Check,
    accepted,
    check_description,
    check_settings,
    close,
    expect,
    first_setup,
    named_checks,
    unchanged,
)
from cryptomnesia.testing.setups import PROMPTS, REFERENCES, SETUPS
from cryptomnesia.testing.traces import check_traces
from cryptomnesia.tracing.generation import generate
from cryptomnesia.tracing.steering import SolverStep
from cryptomnesia.tracing.trajectory import Step, Trajectory
from cryptomnesia.tracing.watching import Keep
from cryptomnesia.verdicts import Action, Verdict

ROWS = (2, 0, 3)
"""Which images are flagged, in an order that is not that of their numbers."""

Judgement = Callable[[Verdict, int], Verdict]
"""Takes the verdict on an image that was made again, and its number among all that were; gives another verdict."""


def check_mitigation(method: str | Any, *, known_failures: Mapping[str, str] | None = None) -> list[Check]:
    """The checks that every mitigation should pass; see the conformance suite in the documentation.

    Args:
        method: a mitigation, its class, or the name of a registered one.
        known_failures: name of a check → why the mitigation is known to fail it.

    Raises:
        UsageError: for an object that is no mitigation, or an unknown check among the known failures.

    Example:
        for check in check_mitigation(MyMitigation()):
            check()
    """
    trial = _Trial(create("mitigation", method))
    bodies = {
        "it describes itself": trial.it_describes_itself,
        "a changed setting is described": partial(check_settings, trial.mitigation),
        "it holds settings only": trial.it_holds_settings_only,
        "every image is answered in order": trial.every_image_is_answered,
        "an image that is still flagged is not shown": partial(trial.only_clean_images_are_shown, _flagged),
        "an image that cannot be judged is not shown": partial(trial.only_clean_images_are_shown, _unknown),
        "of several images the clean ones are shown": partial(trial.only_clean_images_are_shown, _every_other),
        "the batch size does not matter": trial.batch_size_does_not_matter,
        "a correction says what it did": trial.correction_says_what_it_did,
        "it works in half precision": trial.half_precision,
        "nothing is left behind": trial.nothing_is_left_behind,
        **{f"it works or is refused: {name}": partial(trial.works_or_is_refused, name) for name in SETUPS},
    }
    return named_checks(bodies, known_failures)


def _flagged(verdict: Verdict, _: int) -> Verdict:
    return replace(verdict, p_value=0.001, flagged=True, action="none", reason="the check flags every image")


def _clean(verdict: Verdict, _: int) -> Verdict:
    return replace(verdict, p_value=0.9, flagged=False, action="none", reason="the check flags no image")


def _unknown(verdict: Verdict, _: int) -> Verdict:
    return replace(
        verdict, score=math.nan, p_value=math.nan, flagged=False, action="none", reason="could not tell: a test"
    )


def _every_other(verdict: Verdict, number: int) -> Verdict:
    return (_flagged if number % 2 else _clean)(verdict, number)


class _Studio:
    """A studio whose verdicts are given by the check, and that remembers what it made."""

    def __init__(self, maker: Maker, judgement: Judgement) -> None:
        self.batch = maker.batch
        self.made: list[tuple[Any, list[Verdict]]] = []
        self._maker = maker
        self._judgement = judgement
        self._count = 0

    @property
    def setup(self) -> Setup:
        return self._maker.setup

    @property
    def calibration(self) -> Calibration:
        return self._maker.calibration

    @property
    def references(self) -> Trajectory:
        return self._maker.references

    @property
    def detector(self) -> Detector:
        return self._maker.detector

    def make(
        self, calls: Sequence[Mapping[str, Any]], correction: Correction | None = None
    ) -> tuple[Any, list[Verdict]]:
        output, verdicts = self._maker.make(calls, correction)
        judged = [self._judgement(verdict, self._count + number) for number, verdict in enumerate(verdicts)]
        self._count += len(verdicts)
        self.made.append((output, judged))
        return output, judged

    def first(
        self,
        calls: Sequence[Mapping[str, Any]],
        evaluations: int | None = None,
        *,
        keep: Keep = (0,),
        correction: Correction | None = None,
    ) -> Trajectory:
        return self._maker.first(calls, evaluations, keep=keep, correction=correction)

    def verdict_on(self, remade: Remade) -> Verdict | None:
        """The verdict on the picture that is shown, None if this studio did not make it."""
        for output, verdicts in self.made:
            if output is remade.output and 0 <= remade.place < len(verdicts):
                return verdicts[remade.place]
        return None


class _Trial:
    """A mitigation, and a calibrated set-up that is made when it is first needed."""

    def __init__(self, mitigation: Mitigation) -> None:
        self.mitigation = mitigation

    @cached_property
    def setup(self) -> Setup:
        return first_setup(self.mitigation)

    @cached_property
    def calibration(self) -> Calibration:
        return _calibration(self.setup, self.mitigation)

    def studio(self, setup: Setup, calibration: Calibration, judgement: Judgement = _clean) -> _Studio:
        judge = Judge(calibration, default_detector(setup), 0.5)
        return _Studio(Maker(setup.pipe, judge, alters=self.mitigation.alters, batch=4), judgement)

    def remake(self, studio: _Studio, flagged: Sequence[Flagged], setup: Setup | None = None) -> list[Remade]:
        with silent((setup or self.setup).pipe):
            return self.mitigation.remake(flagged, studio)

    def it_describes_itself(self) -> None:
        check_description(self.mitigation)
        alters = self.mitigation.alters
        expect(
            isinstance(alters, frozenset) and all(isinstance(name, str) for name in alters),
            f"{self.mitigation.name} alters {alters!r}; give it a frozenset with the names of norms",
        )

    def it_holds_settings_only(self) -> None:
        with unchanged(self.mitigation):
            self.remake(self.studio(self.setup, self.calibration), _images(self.setup))
            self.mitigation.correction(self.calibration.references)
            self.mitigation.cost(self.setup)

    def every_image_is_answered(self) -> None:
        studio = self.studio(self.setup, self.calibration)
        expect(self.remake(studio, []) == [], f"{self.mitigation.name} answers, although no image is flagged")
        flagged = _images(self.setup)
        remade = self.remake(studio, flagged)
        expect(len(remade) == len(flagged), f"got {len(remade)} answers for {len(flagged)} flagged images")
        for image, answer in zip(flagged, remade, strict=True):
            found, asked = (
                (verdict.image, verdict.prompt, verdict.detector, verdict.fpr, verdict.score, verdict.p_value)
                for verdict in (answer.verdict, image.verdict)
            )
            expect(
                found == asked,
                f"the answer about the image {asked} has the verdict {found}; keep what was found of the first image, "
                "in the order of the images",
            )

    def only_clean_images_are_shown(self, judgement: Judgement) -> None:
        studio = self.studio(self.setup, self.calibration, judgement)
        for answer in self.remake(studio, _images(self.setup)):
            action = answer.verdict.action
            expect(action in get_args(Action), f"the action is {action!r}; give one of {', '.join(get_args(Action))}")
            if answer.output is None:
                expect(action == "withheld", f"no image is shown, but the verdict says {action!r}; say `withheld`")
                continue
            expect(
                action in ("mitigated", "regenerated"),
                f"an image is shown, but the verdict says {action!r}; say `mitigated`",
            )
            verdict = studio.verdict_on(answer)
            expect(verdict is not None, "an image is shown that the studio did not make, so nobody judged it")
            assert verdict is not None
            expect(
                verdict.clean or verdict.action == "mitigated",
                f"an image is shown although the verdict on it is {verdict.reason!r}",
            )

    def batch_size_does_not_matter(self) -> None:
        flagged = _images(self.setup)
        together = self.remake(self.studio(self.setup, self.calibration), flagged)
        for number, answer in enumerate(together):
            (alone,) = self.remake(self.studio(self.setup, self.calibration), _images(self.setup)[number : number + 1])
            expect(
                (answer.output is None) == (alone.output is None) and answer.verdict.action == alone.verdict.action,
                f"image {number} is {answer.verdict.action} beside others and {alone.verdict.action} alone",
            )
            if answer.output is not None and alone.output is not None:
                shown = [one.output.images[one.place] for one in (answer, alone)]
                close(torch.as_tensor(shown[0]), torch.as_tensor(shown[1]), f"image {number} made again alone", 0.02)

    def correction_says_what_it_did(self) -> None:
        mitigation = self.mitigation
        references = self.calibration.references
        # of runs with norms half as large, so that there is something to correct
        smaller = replace(references, norms={name: values / 2 for name, values in references.norms.items()})
        correction = mitigation.correction(smaller)
        if correction is None:
            expect(not mitigation.alters, f"{mitigation.name} corrects no run, but alters {sorted(mitigation.alters)}")
            return
        flagged = _images(self.setup)
        maker = Maker(self.setup.pipe, Judge(self.calibration, default_detector(self.setup), 0.5))
        seen: list[Trajectory] = []
        proposed = correction.as_proposed

        class Looking(Correction):
            def steer(self, step: Step, solver: SolverStep) -> Tensor | None:
                return correction.steer(step, solver)

            def outcome(self, row: int) -> tuple[str, tuple[int, ...]]:
                return correction.outcome(row)

            def as_proposed(self, runs: Trajectory) -> Trajectory:
                seen.append(runs)
                return proposed(runs)

        with silent(self.setup.pipe):
            maker.make([image.call for image in flagged], Looking())
        (runs,) = seen
        before = proposed(runs)
        expect(before.norms.keys() == runs.norms.keys(), "the correction proposes runs with other norms")
        changed = {
            name
            for name, values in runs.norms.items()
            if not torch.equal(values.nan_to_num(), before.norms[name].nan_to_num())
        }
        expect(
            changed <= mitigation.alters,
            f"the correction proposes other {', '.join(sorted(changed))}; name these norms in `alters`",
        )
        for row in range(len(flagged)):
            severity, evaluations = correction.outcome(row)
            expect(
                severity in ("none", "mild", "strong"),
                f"the severity of a correction is {severity!r}; give `none`, `mild` or `strong`",
            )
            expect(
                isinstance(evaluations, tuple) and set(evaluations) <= set(range(runs.evaluations)),
                f"the run was corrected at {evaluations!r}; give a tuple of evaluations in 0 … {runs.evaluations - 1}",
            )
            expect(
                severity != "none" or not evaluations,
                f"the run was corrected at {evaluations}, with the severity `none`",
            )

    def half_precision(self) -> None:
        self._check_use(first_setup(self.mitigation, half=True))

    def nothing_is_left_behind(self) -> None:
        calibration = self.calibration

        def use() -> None:
            self.remake(self.studio(self.setup, calibration, _every_other), _images(self.setup))

        check_traces(self.setup, self.mitigation.name, use)

    def works_or_is_refused(self, name: str) -> None:
        setup = SETUPS[name]()
        if accepted(self.mitigation, setup):
            self._check_use(setup)

    def _check_use(self, setup: Setup) -> None:
        """Flagged images are answered, with finite pictures where there are any, and the cost is a number."""
        mitigation = self.mitigation
        cost = mitigation.cost(setup)
        expect(
            isinstance(cost, int | float) and math.isfinite(cost) and cost >= 0,
            f"the cost of {mitigation.name} is {cost!r}; give a number of evaluations, 0 or more",
        )
        studio = self.studio(setup, _calibration(setup, mitigation))
        flagged = _images(setup)
        remade = self.remake(studio, flagged, setup)
        expect(len(remade) == len(flagged), f"got {len(remade)} answers for {len(flagged)} flagged images")
        for answer in remade:
            if answer.output is not None:
                image = torch.as_tensor(answer.output.images[answer.place])
                expect(image.isfinite().all(), f"{mitigation.name} makes images that are not finite")


def _calibration(setup: Setup, mitigation: Mitigation) -> Calibration:
    """Of a few reference prompts: enough to try things, and too few to judge anything by it."""
    seeds = range(100, 100 + len(REFERENCES))
    localizers = mitigation.maps(setup)
    (batch,) = generate(setup, REFERENCES, seeds, batch_size=len(REFERENCES), decode=False, keep=places(localizers))
    maps = {name: found.values for name, found in maps_of(setup, localizers, batch).items()} if localizers else {}
    return fitted(setup, REFERENCES, batch.trajectory.bare(), maps, localizers=localizers)


def _images(setup: Setup) -> list[Flagged]:
    """Flagged images of a call, each with its own noise, as a detection hands them to a mitigation."""
    return [
        Flagged(
            {
                **setup.family.arguments([PROMPTS[row]], setup.sampling),
                "generator": torch.Generator().manual_seed(row),
                "output_type": "pt",
            },
            Verdict(
                image=row,
                prompt=PROMPTS[row],
                detector="drift",
                fpr=0.5,
                score=10.0 + row,
                p_value=0.01 * (row + 1),
                flagged=True,
                first_flagged_step=1,
                reason="flagged by the check",
            ),
        )
        for row in ROWS
    ]
