"""What the commands share: the application, and the steps from settings to a pipeline and to files."""

import json
import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cryptomnesia.errors import UsageError
from cryptomnesia.places import is_remote, make
from cryptomnesia.settings import CallSettings, GenerateSettings, ImageSettings, JudgeSettings

if TYPE_CHECKING:
    from cryptomnesia.calibration import Calibration
    from cryptomnesia.registry import Kind
    from cryptomnesia.verdicts import Verdict

app = typer.Typer(
    help="Find, map and stop memorized training images in diffusion models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Engine = Annotated[
    str,
    typer.Option(
        help="Where the work is done: local; ray, on the Ray cluster of RAY_ADDRESS or of this machine; or "
        "ray://HOST:10001, on the one at that address. Needs the extra `ray`."
    ),
]

Workers = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Processes that share the work: 1 on this machine, and on Ray one for every GPU, or every core without "
        "GPUs, unless given.",
    ),
]

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def captions_of(settings: GenerateSettings) -> list[str]:
    """The prompts that a command was given; for a model without captions none is needed.

    Raises:
        UsageError: for no prompts, or a file that cannot be used.
    """
    from cryptomnesia.prompts import read_prompts

    if settings.prompt:
        return list(settings.prompt)
    if settings.prompts is not None:
        return read_prompts(settings.prompts, settings.column)
    if _without_captions(str(settings.model)):
        return [""]
    raise UsageError("got no prompts; give --prompt, which can be given several times, or --prompts FILE")


def _without_captions(model: str) -> bool:
    """Whether a model in a local folder takes no captions; reads its index alone."""
    from cryptomnesia.pipelines.families import check_family
    from cryptomnesia.pipelines.loading import check_exists
    from cryptomnesia.registry import load

    folder = check_exists(model)
    if folder is None:
        return False
    try:
        family = str(json.loads((folder / "model_index.json").read_text(encoding="utf-8"))["_class_name"])
    # whoever loads the model says what is wrong with the file
    except (OSError, ValueError, KeyError, TypeError):
        return False
    check_family(family, model)
    return not load("family", family).conditional


def seeds_of(settings: ImageSettings, captions: Sequence[str]) -> list[int]:
    """The seed of every image: for every prompt the first seed and those that follow."""
    return [settings.seed + number for _ in captions for number in range(settings.images_per_prompt)]


def call_of(settings: CallSettings) -> dict[str, Any]:
    """The arguments of every call of the pipeline that were given, named as the pipeline names them.

    Raises:
        UsageError: for an option that is not KEY=VALUE.
    """
    from cryptomnesia.pipelines.origins.options import SETTINGS, parse_options

    call = {name: getattr(settings, setting) for name, setting in SETTINGS.items()}
    return {name: value for name, value in call.items() if value is not None} | parse_options(settings.option)


def pipeline_of(settings: CallSettings, model: str | None = None) -> Any:
    """The pipeline of the settings, or of another model with the same scheduler, dtype and device."""
    from cryptomnesia.pipelines.loading import pipeline_of

    pipe = pipeline_of(settings, model)
    # the commands count and name prompts that are cut off; diffusers would print the rest of every one again
    for handler in logging.getLogger("diffusers").handlers:
        handler.addFilter(_not_cut_off)
    return pipe


def _not_cut_off(record: logging.LogRecord) -> bool:
    return "input was truncated because" not in record.getMessage()


def calibration_of(settings: JudgeSettings, model: str) -> "Calibration":
    """The calibration that was given, or the one in the model's folder; loads no model.

    Raises:
        UsageError: if there is none, or its file cannot be used.
    """
    from cryptomnesia.calibration.stored import FILE, Calibration
    from cryptomnesia.pipelines.loading import check_exists

    folder = check_exists(model)
    if settings.calibration is not None:
        return Calibration.load(settings.calibration)
    if folder is None or not (folder / FILE).is_file():
        raise UsageError(
            f"judging images of {model} needs a calibration; make one with `cryptomnesia calibrate {model} --prompts "
            "FILE -o calibration.safetensors`, and give it as --calibration"
        )
    return Calibration.load(folder / FILE)


def check_names(kind: "Kind", names: Iterable[str]) -> None:
    """Refuse names that nobody registers, and packages that cannot be imported, before a model is loaded.

    Raises:
        CryptomnesiaError: saying which.
    """
    from cryptomnesia.detectors import detector
    from cryptomnesia.registry import create

    for name in names:
        if name == "auto":
            continue
        if kind == "detector":
            detector(name)
        else:
            create(kind, name)


def exit_code(verdicts: Iterable["Verdict"]) -> int:
    """1 if an image was flagged, else 3 if an image could not be judged, else 0."""
    answers = list(verdicts)
    if any(verdict.flagged for verdict in answers):
        return 1
    return 0 if all(verdict.clean for verdict in answers) else 3


def counted(number: int, noun: str) -> str:
    """A number of things in words: "1 picture", "2 pictures"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def print_skipped(skipped: Mapping[str, str], count: int, index: Path) -> None:
    """Name the training images that an index could not use, on standard error."""
    for path, why in list(skipped.items())[:10]:
        typer.echo(f"skipped {path}: {why}", err=True)
    if count > 10:
        typer.echo(f"skipped {count - 10} more; all are named in {index / 'index.json'}", err=True)


def make_folder(folder: Path) -> None:
    """Make `folder`, and see that it can be written to.

    Raises:
        UsageError: if it cannot.
    """
    try:
        make(folder)
        if not is_remote(folder):
            probe = folder / ".writable"
            probe.touch()
            probe.unlink()
    except OSError as error:
        raise UsageError(f"cannot write to {folder}: {error.strerror}; give another folder") from None


def check_folder(folder: Path) -> None:
    """See that `folder` could be made and written to, without making it. Of a store only the first write can tell.

    Raises:
        UsageError: if not.
    """
    if is_remote(folder):
        return
    present = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    if not present.is_dir():
        raise UsageError(f"cannot write to {folder}: {present} is a file; give another folder")
    if not os.access(present, os.W_OK):
        raise UsageError(f"cannot write to {present}; give another folder")


def check_writable(path: Path) -> None:
    """See that the file `path` could be written, without making anything. Of a store only the first write can tell.

    Raises:
        UsageError: if not.
    """
    if is_remote(path):
        return
    if path.is_dir():
        raise UsageError(f"{path} is a folder; give the name of a file")
    present = next(folder for folder in path.absolute().parents if folder.exists())
    if not present.is_dir() or not os.access(present, os.W_OK):
        raise UsageError(f"cannot write to {present}; give another place")


def image_file(folder: Path, what: str, number: int, seed: int, suffix: str = ".png") -> Path:
    """The file of an image; its name begins with `what`, so that commands do not overwrite files of other commands."""
    return folder / f"{what}-{number:04}-seed-{seed}{suffix}"


def remove_old(folder: Path, *what: str) -> None:
    """Remove the files of an earlier run's images."""
    for old in folder.iterdir():
        if re.fullmatch(rf"({'|'.join(what)})-\d{{4,}}-seed-\d+\.(png|safetensors)", old.name):
            old.unlink()
