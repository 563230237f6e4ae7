"""The base of most families: a pipeline that gives one network noisy samples, a timestep and conditioning."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from operator import is_
from typing import Any, ClassVar, Literal

import PIL.Image
import torch
from torch import Tensor, nn

from cryptomnesia.errors import UsageError
from cryptomnesia.pipelines.caches import check_uncached
from cryptomnesia.pipelines.call import PER_PROMPT, canonical, sampling_of
from cryptomnesia.pipelines.denoiser import Kind, Prediction
from cryptomnesia.pipelines.families.base import Branch, Evaluation, NetworkCall
from cryptomnesia.pipelines.inputs import CONTEXT, GRID, Inputs, Shared, input_rows, plain, sorted_out, together
from cryptomnesia.pipelines.schedule import Level, Schedule, schedule_of
from cryptomnesia.pipelines.solvers import check_solver, kind_of
from cryptomnesia.settings import Sampling

_LASTING = (Tensor, type(None), bool, int, float, str)
"""Types of arguments that stay what they are; the rows of a tensor change with it."""


class NetworkFamily(ABC):
    """Base class of families: a pipeline that gives one network noisy samples, a timestep and conditioning.

    A family says with class attributes how its pipeline does that, and overrides what is different. The number of
    guidance branches is never taken from the settings: it shows in the calls. A batch of twice as many samples as the
    solver has holds both branches, and two calls are one branch each.

    Attributes:
        name: under which a user can vouch for a pipeline.
        network: the pipeline's attribute that holds the network.
        flow: whether the model is trained on rectified flow.
        sample_name: name of the network's argument for noisy samples.
        time_name: name of its argument for the timestep.
        by_position: whether samples and timestep are given by position.
        first: the branch in the first half of a batch with both branches.
        first_call: the branch of the first call, if every branch has a call.
        shared: names of conditioning that is the same for every image.
        listed: names of conditioning that is a list with one item per image.
        stacked: names of conditioning with the images in its second dimension.
        pictures: names of the call's arguments that are one picture for all prompts, or one per prompt.
        guidance_name: name of the call's argument that says how strongly the unconditional branch is left behind.
        sign: -1 if the pipeline negates the network's output, else 1.
    """

    name: ClassVar[str]
    conditional: ClassVar[bool] = True
    network: ClassVar[str]
    flow: ClassVar[bool] = False
    sample_name: ClassVar[str] = "hidden_states"
    time_name: ClassVar[str] = "timestep"
    by_position: ClassVar[bool] = False
    first: ClassVar[Literal["cond", "uncond"]] = "uncond"
    first_call: ClassVar[Literal["cond", "uncond"]] = "cond"
    shared: ClassVar[frozenset[str]] = frozenset()
    listed: ClassVar[frozenset[str]] = frozenset()
    stacked: ClassVar[frozenset[str]] = frozenset()
    pictures: ClassVar[frozenset[str]] = frozenset()
    guidance_name: ClassVar[str] = "guidance_scale"
    sign: ClassVar[float] = 1.0

    # of the newest call of the network: what it was given, and the conditioning into which that was sorted
    _given: Sequence[Any] = ()
    _sorted: Sequence[Inputs] = ()

    def __init__(self, pipe: Any) -> None:
        """Read what the network predicts, and on which noise schedule it was trained.

        Raises:
            UsageError: for a scheduler that does not solve the model.
        """
        self.pipe = pipe
        self.module: nn.Module = getattr(pipe, self.network)
        check_solver(pipe.scheduler, flow=self.flow, distilled=self.distilled)
        self.kind: Kind = kind_of(pipe.scheduler)
        self.schedule: Schedule = schedule_of(pipe.scheduler)

    @property
    def beside(self) -> tuple[nn.Module, ...]:
        """Further networks whose calls `read` is given: none."""
        return ()

    @property
    def distilled(self) -> bool:
        """Whether the network is a latent consistency model."""
        return False

    def time(self, t: float, x: Tensor) -> Any:
        """The timestep as the pipeline gives it to the network, for noisy samples x (B, …): (B,) unless overridden."""
        return torch.tensor(t, device=x.device, dtype=torch.float32).expand(len(x))

    def grid(self, inputs: Mapping[str, Any], sample: Tensor) -> tuple[int, int] | None:
        """Height and width in tokens of packed latents (B, tokens, channels); None for latents that are not packed."""
        return None

    def samples_of(self, given: Any) -> Tensor:
        """The noisy samples of a call as one tensor, (n, …)."""
        return given

    def value_of(self, output: Any) -> Tensor:
        """The network's output as one tensor, (n, …)."""
        return output if isinstance(output, Tensor) else output[0]

    def given(self, x: Tensor) -> Any:
        """Noisy samples (B, …) as the network takes them."""
        return x

    def read(self, calls: Sequence[NetworkCall], sample: Tensor) -> Evaluation | None:
        """The evaluation that a solver's step uses."""
        calls = self._of_one_step(calls, sample)
        branches = [branch for call in calls for branch in self._branches(call, sample)]
        if not branches:
            return None
        if len(branches) > 2:
            raise UsageError(
                f"a {type(self.pipe).__name__} gave the network {len(branches)} branches for one step; known are one "
                "and two, so switch off what adds another one (perturbed attention, a second guidance)"
            )
        x = branches[0][0]
        found: list[Branch] = [branch for _, branch in branches]
        if len(found) == 1:
            return Evaluation(x, found[0], None)
        batched = len(calls) == 1
        cond, uncond = found if (self.first if batched else self.first_call) == "cond" else reversed(found)
        return Evaluation(x, cond, uncond)

    def _of_one_step(self, calls: Sequence[NetworkCall], sample: Tensor) -> Sequence[NetworkCall]:
        """The calls with the noisy samples of the last one; a callback may have evaluated the network on others."""
        if len(calls) < 2:
            return calls
        given = [self._taken(named_arguments(self.module, call))[: len(sample), : sample.shape[1]] for call in calls]
        return [call for call, x in zip(calls, given, strict=True) if _equal(x, given[-1])]

    def _taken(self, arguments: dict[str, Any]) -> Tensor:
        """The noisy samples of a call, which are taken out of its arguments."""
        place = self.sample_name if self.sample_name in arguments else next(iter(arguments))
        return self.samples_of(arguments.pop(place))

    def _branches(self, call: NetworkCall, sample: Tensor) -> list[tuple[Tensor, Branch]]:
        """The noisy samples and the branch of every part of a call's batch."""
        arguments = named_arguments(self.module, call)
        given = self._taken(arguments)
        time = self.time_name if self.time_name in arguments else next(iter(arguments), "")
        arguments.pop(time, None)
        value = self.sign * self.value_of(call.output) if self.sign != 1 else self.value_of(call.output)
        images, batch = len(sample), len(given)
        if batch % images:
            raise UsageError(f"the network got {batch} samples for {images} images; expected a multiple")
        width = sample.shape[1]
        context = given[:, width:] if given.shape[1] > width else None
        # behind the noisy channels or tokens are those of a picture or a mask, which the solver does not change; a
        # learned variance lies behind the prediction, and so does what the network says about a context
        x = given if context is None else given[:, :width]
        value = value[:, :width] if value.shape[1] > width else value
        inputs = self._inputs_of_parts(arguments, batch, images, context, sample)
        if batch == images:
            return [(x, Branch(value, inputs[0]))]
        outputs = zip(x.split(images), value.split(images), inputs, strict=True)
        return [(part, Branch(output, conditioning)) for part, output, conditioning in outputs]

    def _inputs_of_parts(
        self, arguments: Mapping[str, Any], batch: int, images: int, context: Tensor | None, sample: Tensor
    ) -> Sequence[Inputs]:
        """The conditioning of every part of a call's batch."""
        given = (batch, images, *arguments, *arguments.values())
        # most pipelines give the very same arguments at every step; what may change within is sorted out again
        lasting = context is None and all(isinstance(value, _LASTING) for value in arguments.values())
        if lasting and len(given) == len(self._given) and all(map(is_, given, self._given)):
            return self._sorted
        inputs = self._inputs(arguments, batch)
        if context is not None:
            inputs[CONTEXT] = context
        if (size := self.grid(arguments, sample)) is not None:
            inputs[GRID] = Shared(size)
        parts: list[Inputs] = [inputs]
        if batch != images:
            parts = [input_rows(inputs, slice(start, start + images)) for start in range(0, batch, images)]
        self._given, self._sorted = (given, parts) if lasting and size is None else ((), ())
        return parts

    def _inputs(self, arguments: Mapping[str, Any], batch: int) -> dict[str, Any]:
        """The conditioning in the arguments of a call with `batch` samples, without samples and timestep."""
        return {
            name: sorted_out(item, batch, name=name, shared=self.shared, listed=self.listed, stacked=self.stacked)
            for name, item in arguments.items()
            if item is not None and name != "return_dict"
        }

    def conditioned(
        self, call: NetworkCall, images: int, earlier: int, change: Callable[[Inputs], Inputs | None]
    ) -> NetworkCall:
        """A call of the network with other conditioning of its conditional branch.

        Args:
            call: as the pipeline makes it; it has no output yet.
            images: number of images of the pipeline's call.
            earlier: calls of the same step that were made before.
            change: conditioning of the conditional branch of all images → another one, None to leave it.

        Raises:
            UsageError: if the batch is not one or two branches of the images, or the two branches do not fit into one
                batch any more.
        """
        arguments = named_arguments(self.module, call)
        batch = len(self._taken(arguments))
        arguments.pop(self.time_name if self.time_name in arguments else next(iter(arguments), ""), None)
        if batch not in (images, 2 * images):
            raise UsageError(
                f"the network got {batch} samples for {images} images, and its captions are to be changed; expected "
                f"{images} or {2 * images}, so switch off what adds another branch"
            )
        inputs = self._inputs(arguments, batch)
        if batch == images:
            # a branch of its own: the conditional one of every step is the first call or the second
            if (self.first_call == "cond") != (earlier == 0):
                return call
            changed = change(inputs)
        else:
            halves = [input_rows(inputs, part) for part in (slice(0, images), slice(images, batch))]
            place = 0 if self.first == "cond" else 1
            changed = change(halves[place])
            if changed is not None:
                halves[place] = changed
                changed = together(*halves)
                if changed is None:
                    raise UsageError(
                        "the changed captions and the unconditional branch do not fit into one batch; use a mitigation "
                        "that leaves the captions alone"
                    )
        if changed is None:
            return call
        new = plain(changed)
        names = list(named_arguments(self.module, replace(call, kwargs={})))
        args = tuple(new.get(name, value) for name, value in zip(names, call.args, strict=True))
        return replace(call, args=args, kwargs={name: new.get(name, value) for name, value in call.kwargs.items()})

    def guided_in(self, sampling: Sampling) -> bool:
        """Whether the guidance is above 1."""
        return sampling.guidance > 1

    @abstractmethod
    def native(self) -> tuple[int, int]:
        """Height and width in pixels of the pictures that the model makes by default."""

    def sampling(self, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> Sampling:
        """The settings of a call of the pipeline with the arguments `given`."""
        given = {name: _one(name, value) if name in self.pictures else value for name, value in given.items()}
        return sampling_of(given, defaults, native=self.native(), guidance=self.guidance_name)

    def arguments(self, prompts: Sequence[str], sampling: Sampling) -> dict[str, Any]:
        """Arguments of a call of the pipeline that makes one image per prompt."""
        made = captioned(prompts, sampling, guidance=self.guidance_name)
        # a pipeline that is given one picture and several generators would use the first generator for all of them
        return {name: _each(value, len(prompts)) if name in self.pictures else value for name, value in made.items()}

    def denoiser(self) -> "NetworkDenoiser":
        """The network as a differentiable function.

        Raises:
            UsageError: for a network with a cache.
        """
        check_uncached(self.module)
        return NetworkDenoiser(self)


@dataclass(frozen=True)
class NetworkDenoiser:
    """The network of a `NetworkFamily` as `Denoiser`."""

    family: NetworkFamily

    @property
    def module(self) -> nn.Module:
        """The network that is evaluated."""
        return self.family.module

    def __call__(self, x: Tensor, level: Level, inputs: Inputs) -> Prediction:
        """The prediction at x (B, …) and one noise level for the whole batch.

        Raises:
            UsageError: for a timestep in place of a level.
        """
        if not isinstance(level, Level):
            raise UsageError(
                f"got {level!r} as noise level; give `step.level` of a run, or `level_at(family.schedule, t)`"
            )
        family, width = self.family, x.shape[1]
        # under a Jacobian x may be another tensor than the one that was recorded, and the context stays as it is
        given = torch.cat([x, inputs[CONTEXT].to(x.dtype)], dim=1) if CONTEXT in inputs else x
        time = family.time(level.t, x)
        arguments = {**plain(inputs), "return_dict": False}
        if family.by_position:
            output = family.module(family.given(given), time, **arguments)
        else:
            output = family.module(**{family.sample_name: family.given(given), family.time_name: time}, **arguments)
        value = family.value_of(output)[:, :width]
        value = family.sign * value if family.sign != 1 else value
        return Prediction(x, value, level.alpha, level.sigma, family.kind)


def _equal(first: Tensor, second: Tensor) -> bool:
    # latents may be NaN
    return first.shape == second.shape and torch.allclose(first, second, rtol=0, atol=0, equal_nan=True)


def named_arguments(module: nn.Module, call: NetworkCall) -> dict[str, Any]:
    """The arguments of a call of a network by name, in their order."""
    # torch.compile wraps a network in another one
    names = _parameters(type(module._modules.get("_orig_mod") or module))
    return {**dict(zip(names, call.args, strict=False)), **call.kwargs}


@cache
def _parameters(kind: type) -> tuple[str, ...]:
    """The names of the parameters of a network's `forward`."""
    return tuple(inspect.signature(kind.forward).parameters)[1:]


def captioned(prompts: Sequence[str], sampling: Sampling, *, guidance: str = "guidance_scale") -> dict[str, Any]:
    """Arguments of a call of a text-to-image pipeline that makes one image per prompt.

    Args:
        prompts: one per image.
        sampling: the settings.
        guidance: name of the call's argument for the guidance.
    """
    # a pipeline that is given a picture may take no size, and for others None need not mean the model's own
    sizes = {"height": sampling.height, "width": sampling.width}
    return {
        "prompt": list(prompts),
        "num_inference_steps": sampling.steps,
        guidance: sampling.guidance,
        **{name: size for name, size in sizes.items() if size is not None},
        **{name: _repeated(name, value, len(prompts)) for name, value in sampling.options.items()},
    }


def _each(picture: Any, count: int) -> Any:
    """A picture for each of `count` prompts; pictures that are more than one already stay as they are."""
    if isinstance(picture, Tensor):
        return picture.repeat(count, 1, 1, 1) if picture.dim() == 3 or len(picture) == 1 else picture
    if isinstance(picture, list | tuple):
        return [picture[0]] * count if len(picture) == 1 else picture
    return [picture] * count if isinstance(picture, PIL.Image.Image) else picture


def _one(name: str, pictures: Any) -> Any:
    """The picture in a list or a batch in which all are the same, else what was given."""
    several = isinstance(pictures, list | tuple) or (isinstance(pictures, Tensor) and pictures.dim() == 4)
    if several and len({canonical(name, picture) for picture in pictures}) == 1:
        return pictures[0]
    return pictures


def _repeated(name: str, value: Any, count: int) -> Any:
    """The value of an option for `count` prompts; one text, or a list of equal texts, holds for every prompt."""
    if name not in PER_PROMPT:
        return value
    texts = [value] if isinstance(value, str) else value
    if isinstance(texts, list | tuple) and texts and isinstance(texts[0], str) and set(texts) == {texts[0]}:
        return [texts[0]] * count
    return value
