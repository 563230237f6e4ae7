"""A set-up: a pipeline and the settings of its calls; and what methods of every kind have to do with it."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

from cryptomnesia.errors import UsageError
from cryptomnesia.pipelines.call import NEUTRAL, PER_PROMPT, canonical, defaults_of
from cryptomnesia.pipelines.families import Family, family_of
from cryptomnesia.pipelines.fingerprint import Fingerprint, fingerprint
from cryptomnesia.pipelines.origins.options import check_values
from cryptomnesia.pipelines.rehearsal import asked
from cryptomnesia.registry import MEMBERS, Kind, create
from cryptomnesia.settings import Sampling

Requirement = Literal["guidance", "captions", "checkpoint"]
"""What a method can require of a set-up: an unconditional branch, captions in words, a less-trained checkpoint."""

_NO_SETTINGS = frozenset({*MEMBERS["method"], "reads", "norms", "signals", "alters", "stronger", "evaluations"})
"""Attributes of a method that document it, or are what its function needs."""

if TYPE_CHECKING:
    # of type Any, because a type checker would refuse some of the ways of replacing it
    def overridable(compute: Callable[[Any], Any]) -> Any: ...  # noqa: D103

else:

    class overridable:
        """A property that a subclass may replace: by a class attribute, a field, a property, or in its constructor.

        Fields and constructors set it on an instance, which a `property` would refuse. The class itself does not have
        the attribute, so a dataclass does not take it for the default of a field.
        """

        def __init__(self, compute: Callable[[Any], Any]) -> None:
            """Take the function that computes the attribute."""
            self._compute = compute
            self.__doc__ = compute.__doc__

        def __set_name__(self, owner: type, name: str) -> None:
            self._name = name

        def __get__(self, method: Any, owner: type | None = None) -> Any:
            if method is None:
                raise AttributeError(f"{self._name!r} is an attribute of the instances of {owner}")
            return self._compute(method)


class Method(Protocol):
    """What detectors, localizers and mitigations have in common.

    A method is immutable, a frozen dataclass for instance, and its constructor stores settings and nothing else. All
    attributes below can be class attributes, fields, properties, or set by the constructor.
    """

    @overridable
    def name(self) -> str:
        """Under which it is registered, and by which results name it; every method has to define it."""
        raise AttributeError(f"{type(self).__name__} has no name")

    @overridable
    def summary(self) -> str:
        """What it does, in one sentence."""
        return ""

    @overridable
    def source(self) -> str:
        """The paper or the package that it comes from."""
        return ""

    @overridable
    def use_when(self) -> str:
        """When to use it, as Markdown text for the method's page."""
        return ""

    @overridable
    def avoid_when(self) -> str:
        """When not to use it, and what to use then, as Markdown text."""
        return ""

    @overridable
    def requires(self) -> frozenset[Requirement]:
        """What the set-up must have; nothing unless a method says otherwise."""
        return frozenset()

    @overridable
    def observes(self) -> str:
        """What the result is made from. Two methods that observe the same thing do not corroborate each other."""
        return getattr(self, "name", "")

    def check(self, setup: "Setup") -> None:
        """Refuse a set-up in which the method cannot work; `requires` is checked before.

        Raises:
            UsageError: saying what was got, what was expected and the fix.
        """

    def describe(self) -> str:
        """Everything that changes the result, in words; two methods that are described alike give the same result."""
        return describe(self)

    def cost(self, setup: "Setup") -> float:
        """Denoiser evaluations (all guidance branches of one step of one image) beyond the generation itself."""
        return 0.0


def describe(method: Any) -> str:
    """The name of a method and its settings.

    The settings of a dataclass are its fields, except those with `repr=False`, which must change no result. Those of
    another object are the attributes that it was given, except those whose names begin with an underscore.

    Example:
        >>> from cryptomnesia import Drift
        >>> describe(Drift(less=2.0))
        'drift(less=2.0)'
    """
    if dataclasses.is_dataclass(method):
        given = [field.name for field in dataclasses.fields(method) if field.repr]
    else:
        slots = [name for base in type(method).__mro__ for name in _slots(base)]
        given = sorted(name for name in {*slots, *getattr(method, "__dict__", {})} if not name.startswith("_"))
    settings = {name: getattr(method, name) for name in given if hasattr(method, name)}
    shown = [f"{name}={_shown(value)}" for name, value in settings.items() if name not in _NO_SETTINGS]
    named: Any = method  # checked by `registry.lacks`
    return f"{named.name}({', '.join(shown)})"


def _shown(value: Any) -> str:
    """The value as text, the same in every process: sets have another order in each."""
    return f"{{{', '.join(sorted(map(repr, value)))}}}" if isinstance(value, set | frozenset) else repr(value)


def _slots(base: type) -> tuple[str, ...]:
    slots = vars(base).get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)


@dataclass(frozen=True)
class Setup:
    """A pipeline, the settings of its calls and, for maps that are compared with one, a less-trained checkpoint.

    Attributes:
        pipe: a pipeline of a known family.
        sampling: the settings of every call.
        checkpoint: a pipeline around a less-trained checkpoint of the same model, or the base of a fine-tune, or None.
    """

    pipe: Any
    sampling: Sampling
    checkpoint: Any = None

    @classmethod
    def of(cls, pipe: Any, call: dict[str, Any], checkpoint: Any = None) -> "Setup":
        """The set-up of calls with the arguments `call`, named as the pipeline names them.

        Raises:
            UsageError: for a pipeline of an unknown family, an argument that the pipeline does not take, or an argument
                that this library gives for every image.
        """
        return cls(pipe, _sampling(pipe, call), checkpoint)

    @cached_property
    def family(self) -> Family:
        """The family of the pipeline, which knows how it calls its network."""
        return family_of(self.pipe)

    @property
    def guided(self) -> bool:
        """Whether the runs have an unconditional branch."""
        return self.family.guided_in(self.sampling)

    @property
    def complete(self) -> bool:
        """Whether a run makes all the steps that the scheduler plans for `sampling.steps`."""
        # a pipeline that begins from a picture leaves out the first steps
        partial = "strength" in defaults_of(self.pipe)
        given = {"timesteps", "sigmas", "denoising_start", "denoising_end"} & self.sampling.options.keys()
        return not (partial or given)

    @property
    def evaluations(self) -> int | None:
        """The number of denoiser evaluations of a run, None if only the run itself shows it."""
        steps, trained = self.sampling.steps, self.pipe.scheduler.config["num_train_timesteps"]
        # a scheduler that is asked for far too many would fill the memory
        if not 1 <= steps <= trained or not self.complete:
            return None
        try:
            return len(asked(self.pipe.scheduler, steps).timesteps)
        # in these ways schedulers refuse a number of steps, which `check_call` reports, or want further arguments
        except (TypeError, ValueError):
            return None

    @property
    def fingerprint(self) -> Fingerprint:
        """Everything that a calibration depends on."""
        return fingerprint(self.pipe, self.sampling)

    def check(self, methods: Iterable[Method]) -> None:
        """Refuse methods that cannot work in this set-up.

        Raises:
            UsageError: saying what the first such method lacks.
        """
        for method in methods:
            self._check_requirements(method)
            method.check(self)

    def accepts(self, method: Method) -> bool:
        """Whether a method can work in this set-up."""
        try:
            self.check([method])
        except UsageError:
            return False
        return True

    def first_accepted(self, kind: Kind, names: Iterable[str]) -> Any:
        """The first of several registered methods that can work in this set-up, None if none can."""
        return next((made for made in (create(kind, name) for name in names) if self.accepts(made)), None)

    def _check_requirements(self, method: Method) -> None:
        kind = type(self.pipe).__name__
        if unknown := sorted(method.requires - set(get_args(Requirement))):
            raise UsageError(
                f"{method.name} requires {', '.join(map(repr, unknown))}, which nothing can have; a method can require "
                f"{', '.join(get_args(Requirement))}"
            )
        if "guidance" in method.requires and not self.family.conditional:
            raise UsageError(
                f"{method.name} needs the unconditional branch, and a {kind} has one branch only; use another method"
            )
        if "captions" in method.requires and not self.family.conditional:
            raise UsageError(f"{method.name} needs captions, and a {kind} takes none; use another method")
        if "guidance" in method.requires and not self.guided:
            raise UsageError(
                f"{method.name} needs the unconditional branch, and at guidance {self.sampling.guidance:g} this {kind} "
                "has none; give guidance above 1 to a model that is not distilled (to some pipelines with a negative "
                "prompt, and without cutting the guidance short), or use another method"
            )
        if hasattr(method, "map") or getattr(method, "signals", ()):
            # a network with a cache is refused here, before anything is generated
            self.family.denoiser()
        if "checkpoint" in method.requires and self.checkpoint is None:
            raise UsageError(f"{method.name} needs a less-trained checkpoint of the model; give one as `checkpoint`")


def _sampling(pipe: Any, call: Mapping[str, Any]) -> Sampling:
    """The settings of calls with the arguments `call`, and with the pipeline's defaults for the other arguments.

    Args:
        pipe: a pipeline of a known family.
        call: arguments by the names that the pipeline gives them; None stands for the pipeline's default.

    Raises:
        UsageError: for an argument that the pipeline does not take, an argument that this library gives for every
            image, or different values for different images.
    """
    family = family_of(pipe)
    defaults = defaults_of(pipe)
    given = {name: value for name, value in call.items() if value is not None}
    if unknown := sorted(given.keys() - defaults.keys()):
        raise UsageError(
            f"a {type(pipe).__name__} takes no {', '.join(unknown)}; leave it out, or give one of "
            f"{', '.join(sorted(defaults.keys() - NEUTRAL))}"
        )
    if taken := sorted(given.keys() & NEUTRAL):
        raise UsageError(
            f"got {', '.join(taken)}, which the library gives for every image; give prompts and seeds, and leave it out"
        )
    for name in sorted(given.keys() & PER_PROMPT):
        if isinstance(canonical(name, given[name]), list):
            raise UsageError(f"got {len(given[name])} values of {name}; give one that holds for all images")
    check_values(pipe, given)
    return family.sampling(given, defaults)
