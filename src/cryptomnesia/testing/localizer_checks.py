"""The checks of a localizer."""

import math
import unittest
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, get_args

import torch
from torch import Tensor

from cryptomnesia.localizers import Localizer, Map
from cryptomnesia.localizers import localizer as localizer_of
from cryptomnesia.localizers.baseline import Against
from cryptomnesia.localizers.mapping import maps_of, places
from cryptomnesia.pipelines.denoiser import Prediction
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
from cryptomnesia.testing.oracle_runs import CAPTION, fixed_half, half_memorized
from cryptomnesia.testing.setups import PROMPTS, SETUPS
from cryptomnesia.testing.traces import check_traces
from cryptomnesia.tracing.generation import Batch, generate
from cryptomnesia.tracing.trajectory import evaluation

SEEDS = range(len(PROMPTS))
BROKEN = 1
"""Which of the images breaks, in the check that one does."""
SEPARATION = 0.9
"""Smallest area under the curve between what a model remembers of a picture and the rest."""


def check_localizer(method: str | Any, *, known_failures: Mapping[str, str] | None = None) -> list[Check]:
    """The checks that every localizer should pass; see the conformance suite in the documentation.

    Args:
        method: a localizer, its class, or the name of a registered one.
        known_failures: name of a check → why the localizer is known to fail it.

    Raises:
        UsageError: for an object that is no localizer, or an unknown check among the known failures.

    Example:
        for check in check_localizer(MyLocalizer()):
            check()
    """
    trial = _Trial(localizer_of(method))
    bodies = {
        "it describes itself": trial.it_describes_itself,
        "a changed setting is described": trial.settings_are_described,
        "it holds settings only": trial.it_holds_settings_only,
        "the order of the images does not matter": trial.order_does_not_matter,
        "the batch size does not matter": trial.batch_size_does_not_matter,
        "it works in half precision": trial.half_precision,
        "one broken image breaks no other": trial.one_broken_image,
        "the picture stays identical": trial.picture_stays_identical,
        "nothing is left behind": trial.nothing_is_left_behind,
        "the map is higher where the model remembers": trial.map_is_higher_where_the_model_remembers,
        **{f"it works or is refused: {name}": partial(trial.works_or_is_refused, name) for name in SETUPS},
    }
    return named_checks(bodies, known_failures)


class _Trial:
    """A localizer, and a generation that is made when it is first needed."""

    def __init__(self, localizer: Localizer) -> None:
        self.localizer = localizer

    @cached_property
    def setup(self) -> Setup:
        return first_setup(self.localizer)

    @cached_property
    def batch(self) -> Batch:
        return self.record(self.setup)

    @cached_property
    def maps(self) -> Map:
        return self.map(self.setup, self.batch)

    def record(
        self, setup: Setup, prompts: Sequence[str] = PROMPTS, seeds: Sequence[int] = SEEDS, *, decode: bool = True
    ) -> Batch:
        (batch,) = generate(
            setup, prompts, seeds, batch_size=len(prompts), keep=places([self.localizer]), decode=decode
        )
        return batch

    def map(self, setup: Setup, batch: Batch, rows: Sequence[int] | None = None) -> Map:
        return maps_of(setup, [self.localizer], batch, rows)[self.localizer.name]

    def it_describes_itself(self) -> None:
        localizer = self.localizer
        check_description(localizer)
        known = get_args(Against)
        expect(
            localizer.baseline in known,
            f"the baseline of {localizer.name} is {localizer.baseline!r}; give it one of {', '.join(known)}",
        )
        expect(localizer.evaluations, f"{localizer.name} looks at no evaluation; name one in `evaluations`")
        for place in localizer.evaluations:
            evaluation(place, 1000)

    def settings_are_described(self) -> None:
        def same(first: Localizer, second: Localizer) -> bool:
            found = [_Trial(one).maps.values for one in (first, second)]
            return torch.allclose(found[0], found[1], rtol=1e-3)

        check_settings(self.localizer, same)

    def it_holds_settings_only(self) -> None:
        with unchanged(self.localizer):
            self.map(self.setup, self.record(self.setup))
            self.localizer.cost(self.setup)

    def order_does_not_matter(self) -> None:
        order = [2, 0, 3, 1]
        self._compare(self.map(self.setup, self.batch, order), order, "maps of the same images in another order")
        again = self.record(self.setup, [PROMPTS[at] for at in order], [SEEDS[at] for at in order])
        self._compare(self.map(self.setup, again), order, "maps of images that were generated in another order")

    def batch_size_does_not_matter(self) -> None:
        for row, (prompt, seed) in enumerate(zip(PROMPTS, SEEDS, strict=True)):
            self._compare(self.map(self.setup, self.batch, [row]), [row], f"the map of image {row} alone")
            alone = self.record(self.setup, [prompt], [seed])
            self._compare(self.map(self.setup, alone), [row], f"the map of image {row}, generated alone")

    def _compare(self, found: Map, rows: list[int], what: str) -> None:
        # finite differences multiply the rounding of batched arithmetic
        close(found.values, self.maps.values[rows], what, 0.02)
        if self.maps.errors is not None:
            expect(found.errors is not None, f"{what}: the errors are missing")

    def half_precision(self) -> None:
        self._check_map(first_setup(self.localizer, half=True))

    def one_broken_image(self) -> None:
        """The map of an image with NaN is NaN, or an error that this library knows; the others have theirs."""

        def spoilt(prediction: Prediction, x: Tensor) -> Prediction:
            value = prediction.value.clone()
            value[BROKEN] = torch.nan
            return replace(prediction, x=x, value=value)

        steps = {}
        for number, step in self.batch.trajectory.steps.items():
            x = step.cond.x.clone()
            x[BROKEN] = torch.nan
            steps[number] = replace(
                step,
                cond=spoilt(step.cond, x),
                uncond=None if step.uncond is None else spoilt(step.uncond, x),
                guided=spoilt(step.guided, x),
            )
        broken = replace(self.batch, trajectory=replace(self.batch.trajectory, steps=steps))
        found = self.map(self.setup, broken)
        expect(
            found.values[BROKEN].isnan().all(),
            f"{self.localizer.name} maps an image whose latents are NaN, with the values "
            f"{found.values[BROKEN].flatten()[:3].tolist()} …; raise NotFiniteError",
        )
        others = [row for row in range(len(PROMPTS)) if row != BROKEN]
        kept = Map(found.values[others], None if found.errors is None else found.errors[others])
        self._compare(kept, others, "maps of the images beside one that is broken")

    def picture_stays_identical(self) -> None:
        setup = first_setup(self.localizer)
        (plain,) = generate(setup, PROMPTS, SEEDS, batch_size=len(PROMPTS))
        batch = self.record(setup)
        self.map(setup, batch)
        (again,) = generate(setup, PROMPTS, SEEDS, batch_size=len(PROMPTS))
        for images, when in ((batch.images, "that are mapped"), (again.images, "that are generated after a map")):
            expect(torch.equal(plain.images, images), f"pictures {when} by {self.localizer.name} are others")

    def nothing_is_left_behind(self) -> None:
        check_traces(self.setup, self.localizer.name, lambda: self.map(self.setup, self.record(self.setup)))

    def map_is_higher_where_the_model_remembers(self) -> None:
        setup = half_memorized()
        if not accepted(self.localizer, setup):
            raise unittest.SkipTest(f"{self.localizer.name} refuses the pipeline of the closed forms")
        fixed = fixed_half()
        batch = self.record(setup, [CAPTION] * 3, range(3), decode=False)
        for number, values in enumerate(self.map(setup, batch).values):
            expect(values.shape == fixed.shape, f"a map of 4×4 latents has the shape {tuple(values.shape)}")
            found = auc(values[fixed].numpy(), values[~fixed].numpy())
            expect(
                found > SEPARATION,
                f"on image {number} the area under the curve between what a half memorizer remembers and the rest is "
                f"{found:.2f}; it should be above {SEPARATION}, because higher values mean more memorized",
            )

    def works_or_is_refused(self, name: str) -> None:
        setup = SETUPS[name]()
        if accepted(self.localizer, setup):
            self._check_map(setup)

    def _check_map(self, setup: Setup) -> None:
        """The map is finite and has several places, and the cost is a number; the library checks the rest itself."""
        localizer = self.localizer
        cost = localizer.cost(setup)
        expect(
            isinstance(cost, int | float) and math.isfinite(cost) and cost >= 0,
            f"the cost of {localizer.name} is {cost!r}; give a number of evaluations, 0 or more",
        )
        found = self.map(setup, self.record(setup))
        values, errors = found.values, found.errors
        expect(
            values[0].numel() > 1,
            f"the maps have the shape {tuple(values.shape)}; give more than one number per image",
        )
        expect(
            values.dtype in (torch.float32, torch.float64) and not values.requires_grad,
            f"maps are {values.dtype}{', with gradients' if values.requires_grad else ''}; give float32 or float64",
        )
        expect(values.isfinite().all(), f"{localizer.name} accepts the set-up, but its maps are not finite there")
        if errors is not None:
            expect(
                errors.shape == values.shape and (errors.isnan() | (errors >= 0)).all(),
                f"the standard errors of {localizer.name} are {tuple(errors.shape)}, from {errors.min():.3g}; give one "
                "per value, 0 or more, NaN where nothing is known",
            )
