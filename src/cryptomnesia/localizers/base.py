"""What a localizer is: it takes a watched generation and gives a map of what is memorized."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from cryptomnesia.errors import NotFiniteError, UsageError
from cryptomnesia.localizers.baseline import Against, Baseline, check_checkpoint
from cryptomnesia.pipelines.denoiser import Denoiser, Prediction
from cryptomnesia.pipelines.inputs import Inputs, unpacked
from cryptomnesia.pipelines.setup import Method, Requirement, overridable
from cryptomnesia.tracing.trajectory import Place, Step, Trajectory, evaluation

if TYPE_CHECKING:
    from cryptomnesia.pipelines.setup import Setup


@dataclass(frozen=True)
class Watched:
    """A generation to be mapped.

    Attributes:
        trajectory: the run, with the tensors of the localizer's evaluations.
        denoiser: the network that made it.
        baseline: what the map is compared with; None for the unconditional branch of the run.
        prompts: the captions, one per image, or None where they are not known in words.
        seeds: one per image, from which its random probes are drawn; None gives all images the same probes.
        pipe: the pipeline, None where only its network is known.
    """

    trajectory: Trajectory
    denoiser: Denoiser
    baseline: Baseline | None = None
    prompts: Sequence[str] | None = None
    seeds: Sequence[int] | None = None
    pipe: Any = None

    def rows(self, rows: Sequence[int]) -> "Watched":
        """The generation of some of the images."""
        return replace(
            self,
            trajectory=self.trajectory.rows(rows),
            baseline=None if self.baseline is None else self.baseline.rows(rows),
            prompts=None if self.prompts is None else [self.prompts[row] for row in rows],
            seeds=None if self.seeds is None else [self.seeds[row] for row in rows],
        )

    def against(self, step: Step) -> Baseline:
        """The baseline at an evaluation.

        Raises:
            UsageError: if the run has no unconditional branch, and no other baseline was given.
        """
        if self.baseline is not None:
            return self.baseline
        if step.uncond is None or step.uncond_inputs is None:
            raise UsageError(
                "the run has no unconditional branch, which is the baseline of this map; generate with guidance "
                "above 1, or give the map another baseline: `empty` or `checkpoint`"
            )
        return Baseline(self.denoiser, step.uncond_inputs, step.uncond)


@dataclass(frozen=True)
class Map:
    """Maps of B images at latent resolution.

    Attributes:
        values: (B, h, w), ≥ 0 in the localizer's unit, higher is more memorized. NaN for an image for which the
            network's output is not finite.
        errors: the standard errors of the values before negative values were set to 0, (B, h, w), NaN where they are
            not known; None if the localizer estimates nothing.
    """

    values: Tensor
    errors: Tensor | None = None


class Localizer(Method, Protocol):
    """Makes a map over the picture: ≥ 0, higher is more memorized.

    Subclass this protocol: then `name` and `map` are all that a localizer has to define.

    Attributes:
        step: the evaluation from which the map is made.
        baseline: what the map is compared with: `none`, the `unconditional` branch of the same run, the model with an
            `empty` caption, or a less-trained `checkpoint`.
    """

    step: Place = -1
    baseline: Against = "none"

    @overridable
    def evaluations(self) -> tuple[Place, ...]:
        """The evaluations whose tensors must be kept; the baseline is evaluated at the first of them."""
        return (self.step,)

    @overridable
    def requires(self) -> frozenset[Requirement]:
        """What the baseline requires."""
        needed: dict[Against, Requirement] = {
            "unconditional": "guidance",
            "empty": "captions",
            "checkpoint": "checkpoint",
        }
        return frozenset({needed[self.baseline]} if self.baseline in needed else ())

    def check(self, setup: "Setup") -> None:
        """Refuse a set-up in which the map cannot be computed.

        Raises:
            UsageError: saying why.
        """
        for place in self.evaluations:
            check_place(setup, place)
        if self.baseline == "checkpoint":
            check_checkpoint(setup.pipe, setup.checkpoint)

    def cost(self, setup: "Setup") -> float:
        """One evaluation for a baseline that is not part of the run; a localizer adds its own evaluations."""
        return float(self.baseline in ("empty", "checkpoint"))

    @abstractmethod
    def map(self, watched: Watched) -> Map:
        """The map of every image.

        Raises:
            NotFiniteError: if the network's output is not finite for one of the images.
            UsageError: if something that the map needs is missing.
        """
        ...


def map_where_finite(localizer: Localizer, watched: Watched) -> Map:
    """The maps of a localizer; NaN for an image for which the network's output is not finite.

    Only that image is lost: the batch is halved, and its halves are mapped again, until the image is alone.
    """
    try:
        return _checked(localizer, localizer.map(watched), len(watched.trajectory))
    except NotFiniteError:
        pass
    count = len(watched.trajectory)
    if count == 1:
        step = watched.trajectory.step(localizer.evaluations[0])
        return Map(torch.full_like(over_channels(step.cond.x, step.cond_inputs), torch.nan))
    halves = [map_where_finite(localizer, watched.rows(part)) for part in (range(count // 2), range(count // 2, count))]
    # the size of a localizer's maps is known only where it made one
    size = next((half.values.shape[1:] for half in halves if not half.values.isnan().all()), halves[0].values.shape[1:])
    values = [
        half.values if half.values.shape[1:] == size else half.values.new_full((len(half.values), *size), torch.nan)
        for half in halves
    ]
    if all(half.errors is None for half in halves):
        return Map(torch.cat(values))
    # a map that could not be made has no errors, whatever the localizer estimates
    errors = [
        torch.full_like(maps, torch.nan) if half.errors is None or half.errors.shape != maps.shape else half.errors
        for half, maps in zip(halves, values, strict=True)
    ]
    return Map(torch.cat(values), torch.cat(errors))


def _checked(localizer: Localizer, found: Any, count: int) -> Map:
    """What a localizer returned, if it is one map ≥ 0 or NaN for each of `count` images.

    Raises:
        UsageError: naming the localizer, otherwise.
    """
    values = found.values if isinstance(found, Map) else None
    if not isinstance(values, Tensor) or not values.is_floating_point() or values.dim() != 3 or len(values) != count:
        got = f"values of shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(found).__name__
        raise UsageError(
            f"the localizer {localizer.name} returned {got}; its `map` has to return a `Map` with floating-point "
            f"values of shape ({count}, h, w)"
        )
    if (values < 0).any():
        raise UsageError(f"the localizer {localizer.name} returned negative values; a map has to be ≥ 0")
    if found.errors is not None and found.errors.shape != values.shape:
        raise UsageError(
            f"the localizer {localizer.name} returned errors of shape {tuple(found.errors.shape)} for values of shape "
            f"{tuple(values.shape)}; they have to be alike"
        )
    return found


def check_place(setup: "Setup", place: Place) -> None:
    """Refuse an evaluation that no run of the set-up has.

    Raises:
        UsageError: with the evaluations that a run has.
    """
    count = setup.evaluations
    if isinstance(place, float):
        evaluation(place, 1)
    elif count is not None:
        evaluation(place, count)


def named(name: str, baseline: Against) -> str:
    """The name of a localizer that can be compared with several baselines."""
    return f"{name}-{baseline}" if baseline in ("empty", "checkpoint") else name


def over_channels(values: Tensor, inputs: Inputs) -> Tensor:
    """The sum over channels, (B, h, w) in fp32 or fp64, of values (B, C, h, w) or (B, tokens, channels).

    Args:
        values: one number for every entry of the latents.
        inputs: conditioning of the network, which tells where the tokens of packed latents are.
    """
    return unpacked(wide(values), inputs).sum(dim=1)


def subtractable(prediction: Prediction, formed: Tensor) -> Tensor | None:
    """What was formed from a recorded prediction, or None if a finite difference must not subtract it.

    Under autocast the network's output has fewer bits than its input. The difference between such an output and one
    that was computed without autocast would mostly be rounding.
    """
    return formed if prediction.value.dtype == prediction.x.dtype else None


def wide(values: Tensor) -> Tensor:
    """Values in single precision if they are in half precision, else as they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def finite(maps: Tensor) -> Tensor:
    """The maps, if all of their numbers are finite.

    Raises:
        NotFiniteError: if one is not.
    """
    if not torch.isfinite(maps).all():
        raise NotFiniteError("the map is not finite, so the model's output is not; check its weights and dtype")
    return maps
