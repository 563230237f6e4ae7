"""The checks of a family: a pipeline class with a solver."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import SkipTest

import torch
from torch import Tensor

from cryptomnesia.auditing.audited import audit
from cryptomnesia.auditing.outcome import SCORES
from cryptomnesia.calibration.fitting import calibrate
from cryptomnesia.calibration.stored import Calibration
from cryptomnesia.detection import detect
from cryptomnesia.errors import UsageError
from cryptomnesia.guarding.guarded import guard
from cryptomnesia.localization import localize
from cryptomnesia.localizers import default_localizer
from cryptomnesia.mitigations import StabilityRule
from cryptomnesia.pipelines.call import PER_PROMPT, silent
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.testing.checks import Check, close, expect, named_checks
from cryptomnesia.tracing.steering import SolverStep, check_steerable
from cryptomnesia.tracing.trajectory import Step, Trajectory
from cryptomnesia.tracing.watching import watch

CAPTIONS = ("a red circle", "a blue star")
"""Captions of the images that are made."""


def check_family(make: Callable[[], Setup], *, known_failures: Mapping[str, str] | None = None) -> list[Check]:
    """The checks that a family should pass with a pipeline and a solver.

    Args:
        make: makes a set-up anew: a small pipeline of the family, and the settings of its calls.
        known_failures: name of a check → why the family is known to fail it.

    Raises:
        UsageError: for an unknown check among the known failures.

    Example:
        from cryptomnesia.pipelines.setup import Setup

        for check in check_family(lambda: Setup.of(my_small_pipeline(), {"num_inference_steps": 4})):
            check()
    """
    trial = _Trial(make)
    bodies = {
        "watch: the picture stays the same to the bit": trial.pictures_stay,
        "watch: the run is recorded to its end": trial.runs_are_recorded,
        "watch: the settings tell whether there are two branches": trial.settings_tell_branches,
        "watch: the guided prediction lies on the line through both branches": trial.branches_recombine,
        "watch: signal and noise add up to what the network saw": trial.signal_and_noise_add_up,
        "watch: an image does not depend on its batch": trial.batch_does_not_matter,
        "localize: the network says the same when it is asked again": trial.network_repeats_itself,
        "localize: maps lie on the picture": trial.maps_lie_on_the_picture,
        "detect: calibration, detection and guard agree": trial.verdicts_agree,
        "audit: a run directory holds every image": trial.audit_is_complete,
        "mitigate: the solver lands where it is steered": trial.steering_lands,
        "mitigate: a guard corrects the run": trial.guard_corrects,
    }
    return named_checks(bodies, known_failures)


class _Trial:
    def __init__(self, make: Callable[[], Setup]) -> None:
        self._make = make

    @cached_property
    def setup(self) -> Setup:
        return self._make()

    @cached_property
    def plain(self) -> Tensor:
        """The latents of the images without a watch."""
        return self._run()

    @cached_property
    def seen(self) -> Trajectory:
        """The record of the same images, with all tensors."""
        with watch(self.setup.pipe, keep="all") as seen:
            self._run()
        return seen.trajectory

    @cached_property
    def calibration(self) -> Calibration:
        captions = [f"{CAPTIONS[number % 2]} {number}" for number in range(102)]
        return calibrate(self.setup.pipe, captions, batch_size=51, **self._call())

    def _call(self) -> dict[str, Any]:
        """The settings as arguments of a call, without the prompts."""
        arguments = self.setup.family.arguments([""], self.setup.sampling)
        return {
            name: value[0] if name in PER_PROMPT and isinstance(value, list) else value
            for name, value in arguments.items()
            if name not in ("prompt", "batch_size")
        }

    def _run(self, rows: Sequence[int] = (0, 1)) -> Tensor:
        """The latents of some of the images."""
        pipe, family = self.setup.pipe, self.setup.family
        with silent(pipe):
            return pipe(
                **family.arguments([CAPTIONS[row] for row in rows], self.setup.sampling),
                generator=[torch.Generator().manual_seed(row) for row in rows],
                output_type="latent" if hasattr(pipe, "vae") else "pt",
            ).images

    def _steps(self) -> list[Step]:
        return [self.seen.steps[number] for number in sorted(self.seen.steps)]

    def pictures_stay(self) -> None:
        with watch(self.setup.pipe, keep="all"):
            watched = self._run()
        expect(torch.equal(watched, self.plain), "the picture is another one when it is watched")
        expect(torch.equal(self._run(), self.plain), "the picture is another one after it was watched")

    def runs_are_recorded(self) -> None:
        expect(self.seen.complete, "the run is not recorded to its end")
        expect(len(self.seen) == 2, f"{len(self.seen)} images are recorded instead of 2")
        expect(len(self.seen.steps) == len(self.seen.timesteps), "some evaluations have no tensors")
        for name in ("delta", "z", "x0"):
            expect(self.seen.norms[name].isfinite().all(), f"the norm {name} is not finite")
        if hasattr(self.setup.pipe, "vae"):
            last = self._steps()[-1]
            expect(self.seen.latents.shape == last.sample.shape, "the last latents have another shape")

    def settings_tell_branches(self) -> None:
        found = all(step.uncond is not None for step in self._steps())
        says = "two branches" if self.setup.guided else "one branch"
        expect(self.setup.guided == found, f"the settings tell of {says}, and the run has another number")

    def branches_recombine(self) -> None:
        for step in self._steps():
            guided = step.guided.value.flatten(1).double()
            cond = step.cond.value.flatten(1).double()
            if step.uncond is None:
                # a pipeline may scale the prediction as a whole
                part = (guided * cond).sum(1) / (guided.norm(dim=1) * cond.norm(dim=1))
                expect((part > 0.999).all(), f"evaluation {step.index}: the guided prediction is not the branch")
                continue
            uncond = step.uncond.value.flatten(1).double()
            for row in range(len(guided)):
                basis = torch.stack([cond[row], uncond[row]], dim=1)
                weights = torch.linalg.lstsq(basis, guided[row][:, None]).solution
                rest = (guided[row][:, None] - basis @ weights).norm() / guided[row].norm()
                expect(rest < 0.3, f"evaluation {step.index}: the guided prediction is none of both branches")
                # both are the same for a caption that is the negative prompt
                ordered = weights[0] - weights[1] > -1e-6
                expect(ordered, f"evaluation {step.index}: the branches are taken for each other")

    def signal_and_noise_add_up(self) -> None:
        for step in self._steps():
            for found in (step.cond, step.guided):
                close(found.alpha * found.x0 + found.sigma * found.epsilon, found.x, f"evaluation {step.index}")
        levels = [step.cond.sigma / max(step.cond.alpha, 1e-9) for step in self._steps()]
        expect(levels[0] > levels[-1], "there is more noise at the end of the run than at its beginning")

    def batch_does_not_matter(self) -> None:
        with watch(self.setup.pipe) as seen:
            self._run([1])
        for name, values in seen.trajectory.norms.items():
            close(values, self.seen.norms[name][1:], f"the norm {name}", relative=1e-2)

    def network_repeats_itself(self) -> None:
        view = self.setup.family.denoiser()
        for step in self._steps():
            again = view(step.cond.x, step.level, step.cond_inputs)
            close(again.value, step.cond.value, f"evaluation {step.index}, conditional", relative=2e-3)
            if step.uncond is not None and step.uncond_inputs is not None:
                again = view(step.uncond.x, step.level, step.uncond_inputs)
                close(again.value, step.uncond.value, f"evaluation {step.index}, unconditional", relative=2e-3)
        one = self.seen.rows([1]).step(0)
        again = view(one.cond.x, one.level, one.cond_inputs)
        close(again.value, one.cond.value, "one image of the batch", relative=2e-3)

    def maps_lie_on_the_picture(self) -> None:
        try:
            localizer = default_localizer(self.setup)
        except UsageError as error:
            raise SkipTest(str(error)) from None
        for located in localize(self.setup.pipe, list(CAPTIONS), localizers=[localizer], **self._call()):
            heat = located.maps[localizer.name]
            expect(heat.isfinite().all(), "the map is not finite")
            expect((heat >= 0).all(), "the map has negative values")
            shape = (located.image.shape[-2] / located.image.shape[-1], heat.shape[-2] / heat.shape[-1])
            expect(abs(shape[0] - shape[1]) < 0.05, f"map and picture have the proportions {shape}")

    def verdicts_agree(self) -> None:
        call = self._call()
        found = list(
            detect(self.setup.pipe, list(CAPTIONS), seeds=[0, 1], calibration=self.calibration, fpr=0.5, **call)
        )
        with guard(self.setup.pipe, self.calibration, fpr=0.5) as guarding:
            guarded = self._run()
        expect(torch.equal(guarded, self.plain), "the picture is another one under a guard that observes")
        for finding, verdict in zip(found, guarding.verdicts, strict=True):
            score, other = (torch.tensor(v.score, dtype=torch.float64) for v in (finding.verdict, verdict))
            expect(score.isfinite(), f"there is no score: {finding.verdict.reason}")
            close(other, score, "the score of the guard", relative=1e-2)

    def audit_is_complete(self) -> None:
        with TemporaryDirectory() as folder:
            calibration = Path(folder) / "calibration.safetensors"
            self.calibration.save(calibration)
            store = audit(
                self.setup.pipe,
                list(CAPTIONS),
                Path(folder) / "run",
                calibration=calibration,
                fpr=0.5,
                localize=False,
                mitigate=False,
                **self._call(),
            )
            found = store.rows(SCORES)
        expect(len(found) == 2, f"the run directory has {len(found)} images instead of 2")

    def _check_steerable(self) -> None:
        try:
            check_steerable(self.setup.pipe.scheduler)
        except UsageError as error:
            raise SkipTest(str(error)) from None

    def steering_lands(self) -> None:
        self._check_steerable()
        wanted: list[Tensor | None] = []

        def steer(step: Step, solver: SolverStep) -> Tensor:
            after = solver.after(step.guided.value)
            # a step between two equal noise levels, as the last one of PNDM can be, leads nowhere else
            leads = not torch.allclose(solver.after(step.guided.value + 1), after)
            wanted.append(0.9 * after if leads else None)
            return solver.landing(step.guided.value, after, 0.9 * after)

        with watch(self.setup.pipe, keep="all", steer=steer) as seen:
            self._run()
        run = seen.trajectory
        reached = [run.steps[number].sample for number in range(1, len(run.steps))] + [run.latents]
        expect(sum(goal is not None for goal in wanted) > len(wanted) / 2, "most steps cannot be steered")
        for number, (goal, latents) in enumerate(zip(wanted, reached, strict=True)):
            if goal is None:
                continue
            off = ((latents - goal).norm() / goal.norm()).item()
            expect(off < 2e-3, f"evaluation {number}: the solver lands {off:.2g} off")

    def guard_corrects(self) -> None:
        self._check_steerable()
        rule = StabilityRule(tau_mild=-1.0, tau_strong=-1.0)
        with guard(self.setup.pipe, self.calibration, policy="mitigate", fpr=0.5, mitigation=rule) as guarding:
            corrected = self._run()
        expect(all(verdict.corrected for verdict in guarding.verdicts), "no evaluation was corrected")
        expect(not torch.equal(corrected, self.plain), "the picture is the same under a correction")
