"""A set-up: a pipeline and the settings of its calls, on which methods and calibrations depend."""

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from cryptomnesia.errors import UsageError
from cryptomnesia.pipelines.call import NEUTRAL, PER_PROMPT, canonical, defaults_of
from cryptomnesia.pipelines.families import Family, family_of
from cryptomnesia.pipelines.fingerprint import Fingerprint, fingerprint
from cryptomnesia.registry import Kind, Method, create
from cryptomnesia.settings import Sampling


@dataclass(frozen=True)
class Setup:
    """A pipeline, the settings of its calls and, for maps that are compared with one, a less-trained checkpoint.

    Attributes:
        pipe: a pipeline of a known family.
        sampling: the settings of every call.
        checkpoint: a pipeline around a less-trained checkpoint of the same model, or None.
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
        """The pipeline's family."""
        return family_of(self.pipe)

    @property
    def guided(self) -> bool:
        """Whether the runs have an unconditional branch."""
        return self.family.guided_in(self.sampling)

    @property
    def evaluations(self) -> int | None:
        """The number of denoiser evaluations of a run, None if only the run itself shows it."""
        steps = self.sampling.steps
        if steps < 1 or {"timesteps", "sigmas", "denoising_end"} & self.sampling.options.keys():
            return None
        kind, config = type(self.pipe.scheduler), self.pipe.scheduler.config
        # another scheduler of this kind is asked, because the pipeline's may be in use
        settings = {name: config[name] for name in inspect.signature(kind).parameters if name in config}
        shift = {"mu": 1.0} if config.get("use_dynamic_shifting") else {}
        try:
            scheduler = kind(**settings)
            scheduler.set_timesteps(steps, **shift)
        # in these ways schedulers refuse a number of steps, which the call reports, or want further arguments
        except (TypeError, ValueError):
            return None
        return len(scheduler.timesteps)

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
        if "captions" in method.requires and not self.family.conditional:
            raise UsageError(f"{method.name} needs captions, and a {kind} takes none; use another method")
        if "guidance" in method.requires and not self.guided:
            raise UsageError(
                f"{method.name} needs the unconditional branch, and at guidance {self.sampling.guidance:g} this {kind} "
                "has none; give guidance above 1 to a model that is not distilled, or use another method"
            )
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
    return family.sampling(given, defaults)
