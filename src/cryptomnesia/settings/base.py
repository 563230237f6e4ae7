"""Settings of a generation, and where settings come from: arguments, flags, the environment and files."""

import json
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, PlainSerializer, PlainValidator, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from cryptomnesia.errors import UsageError
from cryptomnesia.places import CACHE, only_local, place

logger = logging.getLogger("cryptomnesia")

PREFIX = "CRYPTOMNESIA_"
"""The first part of the name of an environment variable that holds a setting: `CRYPTOMNESIA_STEPS=25`."""

OTHER_VARIABLES: frozenset[str] = frozenset({"CRYPTOMNESIA_PLUGINS", CACHE})
"""Environment variables with this prefix that are no settings of a command."""

MOST_IMAGES = 100_000
"""Images per prompt that are made at most; their seeds are in memory before the first one is made."""


@dataclass(frozen=True)
class Sampling:
    """The settings of a generation that a calibration is bound to.

    Attributes:
        steps: solver steps, `num_inference_steps` of the pipeline's call.
        guidance: `guidance_scale` of the pipeline's call; with most families 1 switches the unconditional branch off.
        height: of the picture in pixels, None for the model's own.
        width: of the picture in pixels, None for the model's own.
        options: further arguments of every call, for instance `negative_prompt` or `guidance_rescale`.
    """

    steps: int
    guidance: float
    height: int | None = None
    width: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


class Settings(BaseSettings):
    """Base of all groups of settings.

    The constructor takes values as arguments and reads nothing else. `resolve` also reads a file and the environment,
    and raises errors of this library.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    panel: ClassVar[str | None] = None
    """The heading of the group in the help of a command."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The sources of the constructor: its arguments. `resolve` reads the others, to know where a value is from."""
        return (init_settings,)

    @classmethod
    def resolve(
        cls, flags: Mapping[str, Any], file: Path | None = None, *, environment: Mapping[str, str] | None = None
    ) -> Self:
        """The settings from all sources: flags are stronger than the environment, which is stronger than the file.

        A file and the environment may serve several commands: a setting that only other commands know is passed over.

        Args:
            flags: values by name; None stands for a value that was not given.
            file: a TOML file whose keys are names of settings.
            environment: environment variables by name; those of the process when None, and none at all when empty.

        Raises:
            UsageError: in one line, for an unknown name among the flags or in the file, for a file that cannot be read
                and for a value that is not possible. The message says from which source the value is.
        """
        given: dict[str, Any] = {}
        sources: dict[str, _Source] = {}
        if file is not None:
            given |= cls._from_file(file)
            sources |= dict.fromkeys(given, _Source(f" from {file}", "change it there"))
        variables = cls._from_environment(os.environ if environment is None else environment)
        given |= variables
        for name in variables:
            place = variable_name(name)
            sources[name] = _Source(f" from the environment variable {place}", f"change or unset {place}")
        arguments = {name: value for name, value in flags.items() if value is not None}
        if unknown := sorted(arguments.keys() - cls.model_fields.keys()):
            raise UsageError(f"got the unknown setting {_with_guesses(unknown, cls.model_fields)}{cls._known()}")
        given |= arguments
        sources |= dict.fromkeys(arguments, _ARGUMENT)
        try:
            return cls(**given)
        except ValidationError as error:
            raise UsageError("; ".join(_explain(detail, sources) for detail in error.errors())) from None

    @classmethod
    def _from_file(cls, file: Path) -> dict[str, Any]:
        if file.is_dir():
            raise UsageError(f"cannot read the settings {file} (a folder); give a TOML file")
        # pydantic-settings takes a file that does not exist for an empty one
        if not file.is_file():
            raise UsageError(f"cannot read the settings {file} (no such file); give a TOML file")
        try:
            found = TomlConfigSettingsSource(cls, file)()
        except (OSError, ValueError, RecursionError) as error:
            raise UsageError(f"cannot read the settings {file} ({error}); give a TOML file") from None
        everything = _all_names()
        if unknown := sorted(found.keys() - everything):
            raise UsageError(f"{file} has the unknown key {_with_guesses(unknown, cls.model_fields)}{cls._known()}")
        if foreign := sorted(found.keys() - cls.model_fields.keys()):
            logger.info("%s: this command does not use %s", file, ", ".join(foreign))
        used = {name: value for name, value in found.items() if name in cls.model_fields}
        for name, value in used.items():
            kind = cls.model_fields[name].annotation
            # an empty path would be the folder in which the command was started
            if value in ("", [""]) and ("Path" in str(kind)):
                raise UsageError(f"{file} has an empty {name}; give a path, or leave the key out")
        return used

    @classmethod
    def _from_environment(cls, variables: Mapping[str, str]) -> dict[str, Any]:
        known = {name.upper() for name in _all_names()} | {name.removeprefix(PREFIX) for name in OTHER_VARIABLES}
        for name in sorted(variables):
            short = name.upper().removeprefix(PREFIX)
            if name.upper().startswith(PREFIX) and short not in known:
                # the prefix would make all names alike
                guess = get_close_matches(short, known, n=1)
                hint = f"; did you mean {PREFIX}{guess[0]}?" if guess else ""
                logger.warning("ignored the unknown environment variable %s%s", name, hint)
        source = EnvSettingsSource(cls)
        # an empty variable is a variable that is not set
        source.env_vars = {name.lower(): value for name, value in variables.items() if value}
        try:
            return source()
        except SettingsError as error:
            raise UsageError(f"cannot read the environment ({error}); give lists as JSON") from None

    @classmethod
    def _known(cls) -> str:
        return f"; known are {', '.join(cls.model_fields)}"


def as_list(value: Any) -> Any:
    """A list from a text: a JSON list, or the text itself as the only item."""
    if not isinstance(value, str):
        return value
    try:
        items = json.loads(value)
    except (ValueError, RecursionError):
        items = value
    return items if isinstance(items, list) else [value]


Names = Annotated[list[str], NoDecode, BeforeValidator(as_list)]
"""Several texts: in the environment and in a file a JSON list, or the only text as it is."""

LocalPath = Annotated[Path, BeforeValidator(only_local)]
"""A path on this machine."""

Location = Annotated[Path, PlainValidator(place), PlainSerializer(str, when_used="json")]
"""A path on this machine, or a URL of fsspec."""

Paths = Annotated[list[LocalPath], NoDecode, BeforeValidator(as_list)]
"""Several paths on this machine: in the environment and in a file a JSON list, or the only path as it is."""

Locations = Annotated[list[Location], NoDecode, BeforeValidator(as_list)]
"""Several paths or URLs, written in the same way."""


def _as_options(value: Any) -> Any:
    """A list of texts `KEY=VALUE`; a table of a settings file becomes one."""
    if isinstance(value, Mapping):
        # a date of TOML is no value of JSON
        return [f"{name}={json.dumps(one, default=str)}" for name, one in value.items()]
    return as_list(value)


Options = Annotated[list[str], NoDecode, BeforeValidator(_as_options)]
"""Arguments as `KEY=VALUE`, or as a table of a settings file."""

Long = Literal["truncate", "skip", "error"]
"""What is done about prompts that are longer than the text encoders read: cut off as diffusers does it, left out, or
refused."""

BatchSize = Annotated[int, Field(ge=1, description="Images per call of the pipeline.")]


@dataclass(frozen=True)
class _Source:
    """Where a value is from, as part of an error message.

    Attributes:
        place: behind the value.
        fix: what the user can do.
    """

    place: str
    fix: str


_ARGUMENT = _Source("", "give another value")


def variable_name(name: str) -> str:
    """The environment variable of the setting `name`."""
    return f"{PREFIX}{name.upper()}"


def _all_names() -> set[str]:
    """The names of the settings of every command."""
    names: set[str] = set()
    groups: list[type[Settings]] = [Settings]
    while groups:
        group = groups.pop()
        names |= group.model_fields.keys()
        groups += group.__subclasses__()
    return names


def _with_guesses(unknown: Iterable[str], known: Iterable[str]) -> str:
    """Unknown names, each with the known name that is most like it, if one is."""
    possible = list(known)
    words = []
    for name in (" ".join(name.split()) for name in unknown):
        guess = get_close_matches(name, possible, n=1)
        words.append(f"{name} (did you mean {guess[0]}?)" if guess else name)
    return ", ".join(words)


def _explain(detail: ErrorDetails, sources: Mapping[str, _Source]) -> str:
    """An error of pydantic as part of one line: what was got, what was expected and the fix."""
    message = detail["msg"].removeprefix("Value error, ")
    if not detail["loc"]:
        return message
    name = str(detail["loc"][0])
    if detail["type"] == "missing":
        return f"got no {name}; give it as an argument, in a settings file or as {variable_name(name)}"
    source = sources.get(name, _ARGUMENT)
    value = repr(detail["input"])
    shown = value if len(value) <= 60 else f"{value[:57]}..."
    return f"got {name} = {shown}{source.place}, {message.replace('Input should be', 'expected to be')}; {source.fix}"
