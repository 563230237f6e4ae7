"""The settings of a generation and of an audit. Importing this module loads neither torch nor diffusers.

Every setting is declared once, as a field of a class below. The docstring under the field is its description, also in
the help of the command line, where `cryptomnesia.cli.options` turns fields into flags.
"""

import json
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError, model_validator
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

logger = logging.getLogger("cryptomnesia")

PREFIX = "CRYPTOMNESIA_"
"""The first part of the name of an environment variable that holds a setting: `CRYPTOMNESIA_STEPS=25`."""

OTHER_VARIABLES: frozenset[str] = frozenset({"CRYPTOMNESIA_PLUGINS"})
"""Environment variables with this prefix that are no settings of a command."""


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
        # pydantic-settings takes a file that does not exist for an empty one
        if not file.is_file():
            raise UsageError(f"cannot read the settings {file} (no such file); give a TOML file")
        try:
            found = TomlConfigSettingsSource(cls, file)()
        except (OSError, ValueError) as error:
            raise UsageError(f"cannot read the settings {file} ({error}); give a TOML file") from None
        everything = _all_names()
        if unknown := sorted(found.keys() - everything):
            raise UsageError(f"{file} has the unknown key {_with_guesses(unknown, cls.model_fields)}{cls._known()}")
        if foreign := sorted(found.keys() - cls.model_fields.keys()):
            logger.info("%s: this command does not use %s", file, ", ".join(foreign))
        return {name: value for name, value in found.items() if name in cls.model_fields}

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


def _as_list(value: Any) -> Any:
    """A list from a text: a JSON list, or the text itself as the only item."""
    if not isinstance(value, str):
        return value
    try:
        items = json.loads(value)
    except ValueError:
        items = value
    return items if isinstance(items, list) else [value]


Names = Annotated[list[str], NoDecode, BeforeValidator(_as_list)]
"""Several texts: in the environment and in a file a JSON list, or the only text as it is."""

Paths = Annotated[list[Path], NoDecode, BeforeValidator(_as_list)]
"""Several paths, written in the same way."""

BatchSize = Annotated[int, Field(ge=1, description="Images per call of the pipeline.")]


class CallSettings(Settings):
    """The model and the arguments of its calls, for every command that generates images."""

    panel: ClassVar[str | None] = "Generation"

    model: str | None = None
    """A local diffusers folder, a hub id such as org/name, or `bundled`."""
    steps: int | None = Field(None, ge=1)
    """Solver steps; the default of the pipeline's own call unless given."""
    guidance: float | None = None
    """Guidance scale; the default of the pipeline's own call unless given."""
    height: int | None = Field(None, ge=1)
    """Height of the images in pixels; the model's own unless given."""
    width: int | None = Field(None, ge=1)
    """Width of the images in pixels; the model's own unless given."""
    negative_prompt: str | None = None
    """Text for the unconditional branch of every image, instead of an empty one."""
    scheduler: str = "own"
    """The pipeline's own scheduler, or ddim, pndm, euler, euler-ancestral, heun, dpm++, unipc or lms."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Number format of the weights; use the one that the service uses."""
    batch_size: BatchSize = 8


class ImageSettings(CallSettings):
    """The model, the arguments of its calls and the images of every prompt."""

    images_per_prompt: int = Field(1, ge=1)
    """Images per prompt, every one with another seed."""
    seed: int = Field(0, ge=0, le=2**62)
    """Seed of the first image of every prompt; the next images have the seeds that follow."""


class JudgeSettings(Settings):
    """How an image is judged."""

    panel: ClassVar[str | None] = "Detection"

    calibration: Path | None = None
    """File that `calibrate` made, with scores and maps of reference images; the one in the model's folder unless
    given."""
    detector: str = "auto"
    """Detector whose score makes an image suspected; `auto` is the default of the model's family. `methods` lists
    all."""
    fpr: float = Field(0.01, gt=0, lt=1)
    """False-positive rate: the share of ordinary images that are flagged."""


class FlaggedSettings(Settings):
    """What is computed of flagged images."""

    panel: ClassVar[str | None] = "Flagged images"

    localize: bool = False
    """Map where flagged images are memorized."""
    localizer: str = "auto"
    """Localizer that makes the maps; `auto` is the default of the model's family. `methods` lists all."""
    mitigate: bool = False
    """Try the mitigation on flagged images."""
    mitigation: str = "auto"
    """Mitigation to try; `auto` is the default of the model's family. `methods` lists all."""


class MaskSettings(Settings):
    """How a map becomes a mask."""

    panel: ClassVar[str | None] = "Masks"

    pixel_fpr: float = Field(0.05, gt=0, lt=1)
    """Share of the pixels of ordinary images that are above the threshold of a mask."""


class IndexSettings(Settings):
    """The training images that pictures are compared with."""

    panel: ClassVar[str | None] = "Training images"

    index: Path | None = None
    """Index of the training images, made by `index build`."""
    sscd: Path | None = None
    """TorchScript or ONNX file of the descriptor SSCD, if the index was built with it."""


class AuditSettings(IndexSettings, MaskSettings, FlaggedSettings, JudgeSettings, ImageSettings):
    """Everything that the result of an audit depends on, apart from the machine.

    `model` and `prompts` are None where Python passes a pipeline and a list.
    """

    panel: ClassVar[str | None] = "Audit"

    prompts: Path | None = None
    """File of the prompts to audit: .txt, .csv or .jsonl."""
    references: Path | None = None
    """File of captions that are not memorized, to calibrate on instead of `calibration`; 150 support a false-positive
    rate of 1%."""
    seed: int = Field(0, ge=0, le=2**62)
    """Seed of the first image of the run; every further image has the next seed."""
    batch_size: BatchSize = 16
    localize: bool = True
    """Map where flagged images are memorized."""
    mitigate: bool = True
    """Try the mitigation on flagged images."""
    training_images: Path | None = None
    """Folder of the training images, of which the run makes an index."""
    fail_on: Literal["suspected", "corroborated", "confirmed"] = "corroborated"
    """Level of evidence that counts against the model."""
    max_rate: float = Field(0.0, ge=0, lt=1)
    """Share of prompts that may reach that level; no model can pass with 0."""

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.references is not None and self.calibration is not None:
            raise ValueError("got both references and calibration; references make a new calibration, so give one")
        if self.index is not None and self.training_images is not None:
            raise ValueError("got both index and training_images; training_images make a new index, so give one")
        if self.fail_on == "confirmed" and self.index is None and self.training_images is None:
            raise ValueError(
                "got fail_on = 'confirmed' without training images, which alone can confirm; give index or "
                "training_images, or another level"
            )
        return self


class PromptSettings(Settings):
    """The prompts that images are generated of."""

    panel: ClassVar[str | None] = "Prompts"

    prompt: Names = Field(default_factory=list)
    """A prompt; can be given several times."""
    prompts: Path | None = None
    """File of prompts: .txt, .csv or .jsonl."""

    @model_validator(mode="after")
    def _check_one_source(self) -> Self:
        if self.prompt and self.prompts is not None:
            raise ValueError("got both prompt and prompts; give one of them")
        if any(not text.strip() for text in self.prompt):
            raise ValueError("got an empty prompt; give a text")
        return self


class GenerateSettings(PromptSettings, ImageSettings):
    """The settings of every command that generates images of prompts."""


class DetectSettings(FlaggedSettings, JudgeSettings, GenerateSettings):
    """Everything that the result of `detect` depends on."""


class DemoSettings(FlaggedSettings):
    """What `demo` computes of flagged images."""

    localize: bool = True
    """Map where flagged images are memorized."""
    mitigate: bool = True
    """Try the mitigation on flagged images."""


class MapSettings(Settings):
    """The maps to make, and how."""

    panel: ClassVar[str | None] = "Maps"

    localizer: Names = Field(default_factory=list)
    """Localizer that makes maps; can be given several times; the default of the model's family unless given. `methods`
    lists all."""
    at: float | None = None
    """Evaluation that the maps look at: 0 is the first one, -1 the last one, 0.3 three tenths into the run. Every
    localizer has a default of its own."""
    checkpoint: str | None = None
    """Less-trained checkpoint for the localizers that are compared with one: a local folder or a hub id. The bundled
    model has one."""
    probes: int | None = Field(None, ge=1)
    """Products with the Jacobian per image, for the localizers that estimate one: a multiple of 8. By default 16, or at
    most 512 with `wanted`."""
    wanted: float | None = Field(None, gt=0)
    """Relative error of such a map at which the estimate stops before all probes are spent."""
    memory: float | None = Field(None, gt=0)
    """Memory in GiB that such a map may take beside the model; by default 2."""


class LocalizeSettings(MaskSettings, MapSettings, GenerateSettings):
    """Everything that the result of `localize` depends on."""

    calibration: Path | None = None
    """File that `calibrate --localizer` made, which turns maps into masks; the one in the model's folder, if it fits,
    unless given."""
    smooth: float = Field(0.0, ge=0)
    """Standard deviation of a blur before the threshold, in pixels of the map."""
    smallest: int = Field(1, ge=1)
    """Regions of fewer pixels of the map are dropped."""


class CalibrateSettings(MapSettings, CallSettings):
    """Everything that a calibration depends on."""

    prompts: Path | None = None
    """File of captions that are not memorized, at least 100; 150 support a false-positive rate of 1%."""
    seed: int = Field(1_000_000, ge=0, le=2**62)
    """Seed of the first image; every further image has the next seed."""
    detector: Names = Field(default_factory=list)
    """Detector that needs more than the norms of a run, for instance `collapse`, the mean of a map; can be given
    several times. All other detectors are calibrated anyway."""
    localizer: Names = Field(default_factory=list)
    """Localizer whose maps are to become masks; can be given several times. `methods` lists all."""


class GuardSettings(JudgeSettings, GenerateSettings):
    """Everything that the result of `guard` depends on."""

    panel: ClassVar[str | None] = "Guard"

    policy: Literal["observe", "block", "mitigate", "regenerate"] = "observe"
    """What is done about flagged images: nothing, a black image instead, the mitigation, or other seeds and then the
    mitigation."""
    mitigation: str = "auto"
    """Mitigation of the policies mitigate and regenerate; `auto` is the default of the model's family. `methods` lists
    all."""
    decide_by: int | None = Field(None, ge=1)
    """Judge every image after this many evaluations; at the end of the run unless given."""


class MatchSettings(IndexSettings):
    """The pictures that are compared with training images."""

    images: Paths = Field(default_factory=list)
    """Picture files, and folders that are searched with all folders in them."""
    fpr: float = Field(0.01, gt=0, lt=1)
    """Share of pictures that may come as near to a training image by chance."""


class BuildSettings(Settings):
    """How an index of training images is built."""

    images: Path | None = None
    """Folder of the training images, which is searched with all folders in it."""
    sscd: Path | None = None
    """TorchScript or ONNX file of SSCD, to compare pictures by it instead of by tiles."""
    faiss: bool = False
    """Search among candidates: for more than ten million pictures. Needs the extra `faiss`."""
    workers: int | None = Field(None, ge=1)
    """Threads that decode pictures; one per core unless given."""


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
    for name in unknown:
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
