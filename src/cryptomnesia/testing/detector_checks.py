"""The checks of a detector."""

import math
import tempfile
import unittest
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cryptomnesia.calibration.judging import Judge
from cryptomnesia.calibration.recording import fitted
from cryptomnesia.calibration.stored import Calibration
from cryptomnesia.detectors import Detector
from cryptomnesia.detectors import detector as detector_of
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.statistics import auc
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
from cryptomnesia.testing.miniatures import oracle_pipeline
from cryptomnesia.testing.oracle_runs import SAMPLING, SIDE, oracle_runs, oracles
from cryptomnesia.testing.setups import PROMPTS, REFERENCES, SETUPS
from cryptomnesia.testing.traces import check_traces
from cryptomnesia.tracing.generation import Batch, generate
from cryptomnesia.tracing.steering import SolverStep
from cryptomnesia.tracing.trajectory import NORMS, Step, Trajectory, evaluation, joined
from cryptomnesia.tracing.watching import watch

SEEDS = range(len(PROMPTS))
REFERENCE_SEEDS = range(100, 100 + len(REFERENCES))
BROKEN = 1
"""Which of the judged images breaks, in the check that one does."""
SEPARATION = 0.9
"""Smallest area under the curve between memorized and ordinary runs of the closed forms."""


def check_detector(method: str | Any, *, known_failures: Mapping[str, str] | None = None) -> list[Check]:
    """The checks that every detector should pass; see the conformance suite in the documentation.

    Args:
        method: a detector, its class, or the name of a registered one.
        known_failures: name of a check → why the detector is known to fail it.

    Raises:
        UsageError: for an object that is no detector, or an unknown check among the known failures.

    Example:
        for check in check_detector(MyDetector()):
            check()

    With pytest:
        @pytest.mark.parametrize("check", check_detector(MyDetector()), ids=str)
        def test_my_detector(check):
            check()
    """
    trial = _Trial(detector_of(method))
    bodies = {
        "it describes itself": partial(check_description, trial.detector),
        "a changed setting is described": trial.settings_are_described,
        "it holds settings only": trial.it_holds_settings_only,
        "it reads what it declares": trial.it_reads_what_it_declares,
        "it needs nothing but what is stored": trial.it_needs_nothing_but_what_is_stored,
        "a calibration keeps what it reads": trial.a_calibration_keeps_what_it_reads,
        "the order of the images does not matter": trial.order_does_not_matter,
        "the batch size does not matter": trial.batch_size_does_not_matter,
        "a score uses no later evaluation": trial.no_later_evaluation,
        "it works in half precision": trial.half_precision,
        "one broken image breaks no other": trial.one_broken_image,
        "the picture stays identical": trial.picture_stays_identical,
        "nothing is left behind": trial.nothing_is_left_behind,
        "the memorizer scores above the Gaussian": trial.memorizer_scores_higher,
        **{f"it works or is refused: {name}": partial(trial.works_or_is_refused, name) for name in SETUPS},
    }
    return named_checks(bodies, known_failures)


class _Trial:
    """A detector, and runs that are made when they are first needed."""

    def __init__(self, detector: Detector) -> None:
        self.detector = detector

    @cached_property
    def setup(self) -> Setup:
        return first_setup(self.detector)

    @cached_property
    def batch(self) -> Batch:
        return self.record(self.setup)

    @cached_property
    def runs(self) -> Trajectory:
        return self.batch.trajectory.bare()

    @cached_property
    def references(self) -> Trajectory:
        return self.reference_runs(self.setup)

    @cached_property
    def calibration(self) -> Calibration:
        return fitted(
            self.setup, REFERENCES, self.references, {}, norms=self.detector.norms, signals=self.detector.signals
        )

    @cached_property
    def running(self) -> Tensor:
        return self.detector.running(self.runs, self.references)

    def record(
        self,
        setup: Setup,
        prompts: Sequence[str] = PROMPTS,
        seeds: Sequence[int] = SEEDS,
        around: AbstractContextManager[Any] | None = None,
    ) -> Batch:
        detector = detector_of(self.detector, setup)
        (batch,) = generate(
            setup,
            prompts,
            seeds,
            batch_size=len(prompts),
            norms=detector.norms,
            signals=detector.signals,
            around=None if around is None else lambda: around,
        )
        return batch

    def reference_runs(self, setup: Setup) -> Trajectory:
        return self.record(setup, REFERENCES, REFERENCE_SEEDS).trajectory.bare()

    def settings_are_described(self) -> None:
        def same(first: Detector, second: Detector) -> bool:
            scores = [one.running(self.runs, self.references) for one in (first, second)]
            return torch.allclose(scores[0], scores[1], rtol=1e-5, equal_nan=True)

        check_settings(self.detector, same)

    def it_holds_settings_only(self) -> None:
        with unchanged(self.detector):
            references = self.reference_runs(self.setup)
            runs = self.record(self.setup).trajectory
            self.detector.running(runs, references)
            self.detector.score(runs, references)
            self.detector.cost(self.setup)

    def it_reads_what_it_declares(self) -> None:
        detector = self.detector
        made = [norm.name for norm in detector.norms] + [signal.name for signal in detector.signals]
        expect(len(set(made)) == len(made), f"two norms or signals of {detector.name} have the same name: {made}")
        expect(
            isinstance(detector.reads, frozenset) and detector.reads,
            f"{detector.name} reads {detector.reads!r}; give it a frozenset with the names of norms and signals",
        )
        unknown = sorted(detector.reads - NORMS.keys() - set(made))
        expect(not unknown, f"{detector.name} reads {', '.join(unknown)}, which nothing records")
        scores = detector.running(self._only_declared(self.runs), self._only_declared(self.references))
        expect(
            torch.equal(scores.nan_to_num(), self.running.nan_to_num())
            and not (scores.isnan() & ~self.running.isnan()).any(),
            f"{detector.name} uses norms that it does not name in `reads` ({', '.join(sorted(detector.reads))})",
        )

    def _only_declared(self, runs: Trajectory) -> Trajectory:
        """The runs, with NaN in every norm that the detector does not declare, and without such signals."""
        reads = self.detector.reads
        return replace(
            runs,
            norms={
                name: values if name in reads else torch.full_like(values, torch.nan)
                for name, values in runs.norms.items()
            },
            signals={name: values for name, values in runs.signals.items() if name in reads},
        )

    def it_needs_nothing_but_what_is_stored(self) -> None:
        with_tensors = self.detector.running(self.batch.trajectory, self.references)
        close(self.running, with_tensors, "scores of runs with and without their tensors", 0)

    def a_calibration_keeps_what_it_reads(self) -> None:
        null = self.calibration.null(self.detector)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "calibration.safetensors"
            self.calibration.save(path)
            close(Calibration.load(path).null(self.detector), null, "scores of stored reference runs", 0)

    def order_does_not_matter(self) -> None:
        order = [2, 0, 3, 1]
        permuted = self.detector.running(self.runs.rows(order), self.references)
        close(permuted, self.running[order], "scores of the same runs in another order", 1e-5)
        backwards = self.references.rows(range(len(self.references) - 1, -1, -1))
        close(
            self.detector.running(self.runs, backwards), self.running, "scores with references in another order", 1e-5
        )
        again = self.record(self.setup, [PROMPTS[at] for at in order], [SEEDS[at] for at in order]).trajectory
        close(
            self.detector.running(again, self.references),
            self.running[order],
            "scores of images that were generated in another order",
        )

    def batch_size_does_not_matter(self) -> None:
        for row in range(len(self.runs)):
            alone = self.detector.running(self.runs.rows([row]), self.references)
            close(alone, self.running[[row]], f"the score of image {row} alone", 1e-5)
        single = [
            self.record(self.setup, [prompt], [seed]).trajectory.bare()
            for prompt, seed in zip(PROMPTS, SEEDS, strict=True)
        ]
        scores = self.detector.running(joined(single), self.references)
        close(scores, self.running, "scores of images that were generated one by one")

    def no_later_evaluation(self) -> None:
        planned = len(self.runs.timesteps)
        for count in range(self.detector.earliest(planned), planned):
            done = {
                signal.name
                for signal in self.detector.signals
                if max(evaluation(place, planned) for place in signal.evaluations) < count
            }
            started = replace(
                self.runs,
                norms={name: values[:, :count] for name, values in self.runs.norms.items()},
                signals={name: values for name, values in self.runs.signals.items() if name in done},
                complete=False,
            )
            close(
                self.detector.running(started, self.references),
                self.running[:, :count],
                f"scores after {count} of {planned} evaluations, of runs that ended there and of whole ones",
                1e-5,
            )
        close(
            self.detector.score(self.runs, self.references),
            self.running[:, -1],
            "`score` and the last of `running`, of finished runs",
            1e-5,
        )

    def half_precision(self) -> None:
        self._check_scores(first_setup(self.detector, half=True))

    def one_broken_image(self) -> None:
        judge = Judge(self.calibration, self.detector, 0.5)
        sound = judge(self.runs)

        def steer(step: Step, _: SolverStep) -> Tensor:
            value = step.guided.value.clone()
            value[BROKEN] = torch.nan
            return value

        broken = self.record(self.setup, around=watch(self.setup.pipe, steer=steer)).trajectory
        expect(broken.norms["z"][BROKEN].isnan().all(), "the check itself is wrong: no latents are NaN")
        verdicts = judge(broken)
        verdict = verdicts[BROKEN]
        expect(
            math.isnan(verdict.p_value) and not verdict.flagged and verdict.reason.startswith("could not tell: "),
            f"the verdict on an image whose latents are NaN is {verdict.reason!r}; it should say that it cannot tell",
        )
        others = [row for row in range(len(verdicts)) if row != BROKEN]
        scores = [torch.tensor([found[row].score for row in others]) for found in (verdicts, sound)]
        close(scores[0], scores[1], "scores of images beside one whose latents are NaN")

    def picture_stays_identical(self) -> None:
        (plain,) = generate(self.setup, PROMPTS, SEEDS, batch_size=len(PROMPTS))
        expect(
            torch.equal(plain.images, self.batch.images),
            f"pictures are others when norms or signals of {self.detector.name} are recorded",
        )
        for name, values in plain.trajectory.norms.items():
            close(self.runs.norms[name], values, f"the norm {name} with and without {self.detector.name}", 0)

    def nothing_is_left_behind(self) -> None:
        references = self.references

        def use() -> None:
            self.detector.running(self.record(self.setup).trajectory, references)

        check_traces(self.setup, self.detector.name, use)

    def memorizer_scores_higher(self) -> None:
        setup = Setup(oracle_pipeline(oracles()[0], side=SIDE), SAMPLING)
        if not accepted(self.detector, setup):
            raise unittest.SkipTest(f"{self.detector.name} refuses the pipeline of the closed forms")
        runs = oracle_runs(self.detector.norms, self.detector.signals)
        half = len(runs.ordinary) // 2
        references = runs.ordinary.rows(range(half))
        low = self.detector.score(runs.ordinary.rows(range(half, 2 * half)), references)
        high = self.detector.score(runs.memorized, references)
        found = auc(high.numpy(), low.numpy())
        expect(
            found > SEPARATION,
            f"the area under the curve between a perfect memorizer and a Gaussian is {found:.2f}; it should be above "
            f"{SEPARATION}, because higher scores mean more memorized",
        )

    def works_or_is_refused(self, name: str) -> None:
        setup = SETUPS[name]()
        if not accepted(self.detector, setup):
            return
        self._check_scores(setup)

    def _check_scores(self, setup: Setup) -> None:
        """Scores of ordinary runs are there, finite and of the promised shape, and the cost is a number."""
        detector = self.detector
        cost = detector.cost(setup)
        expect(
            isinstance(cost, int | float) and math.isfinite(cost) and cost >= 0,
            f"the cost of {detector.name} is {cost!r}; give a number of evaluations, 0 or more",
        )
        runs, references = self.record(setup).trajectory, self.reference_runs(setup)
        running, score = detector.running(runs, references), detector.score(runs, references)
        count, evaluations = runs.norms["z"].shape
        expect(
            running.shape == (count, evaluations),
            f"`running` of {count} runs of {evaluations} evaluations is {tuple(running.shape)}",
        )
        expect(score.shape == (count,), f"`score` of {count} runs is {tuple(score.shape)}")
        for what, values in (("running", running), ("score", score)):
            expect(
                values.dtype in (torch.float32, torch.float64) and values.device.type == "cpu",
                f"`{what}` is {values.dtype} on {values.device}; give float32 or float64 on the CPU",
            )
        earliest = detector.earliest(evaluations)
        expect(
            isinstance(earliest, int) and 1 <= earliest <= evaluations,
            f"the first score is there after {earliest!r} of {evaluations} evaluations",
        )
        settled = detector.settled(evaluations)
        expect(
            isinstance(settled, int) and earliest <= settled <= evaluations,
            f"the score is settled after {settled!r} of {evaluations} evaluations, and known after {earliest}",
        )
        expect(
            running[:, earliest - 1 :].isfinite().all() and score.isfinite().all(),
            f"{detector.name} accepts the set-up, but cannot tell of ordinary runs; refuse it in `check`, or name in "
            "`requires` what it needs",
        )
        expect(
            torch.equal(running[:, settled - 1 :], running[:, -1:].expand(-1, evaluations - settled + 1)),
            f"the score changes after the {settled} evaluations after which it is settled",
        )
