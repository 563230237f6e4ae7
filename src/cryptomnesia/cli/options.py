"""Flags of a command from the fields of a settings class, so that no command has a list of them.

    @app.command()
    @settings_flags(arguments=["model"], needed=["model"])
    def detect(settings: DetectSettings, prompt: ... = None) -> None: ...

The command has a flag for every field of `DetectSettings`, the option `--config` for a settings file, and its other
parameters. It is called with the settings that flags, environment and file make together.
"""

import functools
import inspect
from collections.abc import Callable, Collection
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, get_args, get_origin

import typer
from pydantic.fields import FieldInfo
from rich.markup import escape

from cryptomnesia.errors import UsageError
from cryptomnesia.places import only_local, place
from cryptomnesia.settings import Settings, variable_name
from cryptomnesia.settings.base import LocalPath, Location

CONFIG = "config"
"""The parameter that holds the settings file."""

Config = Annotated[
    Path | None,
    typer.Option(
        help="TOML file with any of these settings by name. Environment variables such as CRYPTOMNESIA_STEPS=25 are "
        "stronger than the file, and flags are stronger than both."
    ),
]


def settings_flags(
    *, arguments: Collection[str] = (), needed: Collection[str] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Replace the parameter of a command that is a settings class by one flag per field, and add `--config`.

    A flag that is not given reaches `Settings.resolve` as None, so that the environment and the file can give the
    value. Help, type, default and bounds of a flag are those of the field; a boolean field has the flags `--name` and
    `--no-name`. Bounds must be arguments of the field's own `Field(...)`, not of an inner type.

    Args:
        arguments: names of the fields that are positional arguments instead of flags.
        needed: names of the fields that must not be None or empty in the end, whichever source gives them.

    Raises:
        TypeError: when the command is defined, if it has not exactly one parameter that is a settings class, if
            another parameter has the name of a field, or if `arguments` or `needed` name something else than fields.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        parameters = list(signature.parameters.values())
        found = [parameter for parameter in parameters if _is_settings(parameter.annotation)]
        if len(found) != 1:
            raise TypeError(f"{command.__name__} needs one parameter that is a settings class, got {len(found)}")
        place, model = found[0].name, found[0].annotation
        fields: dict[str, FieldInfo] = model.model_fields
        others = [parameter for parameter in parameters if parameter.name != place]
        if twice := {parameter.name for parameter in others} & {CONFIG, *fields}:
            raise TypeError(f"{command.__name__} has the parameters {twice}, which its settings have, too")
        if unknown := {*arguments, *needed} - fields.keys():
            raise TypeError(f"{command.__name__} names {unknown}, which are no fields of {model.__name__}")

        def run(**given: Any) -> None:
            flags = {name: given.pop(name) for name in fields}
            # a list option that is not given is an empty list
            flags = {name: None if value == [] else value for name, value in flags.items()}
            settings = model.resolve(flags, given.pop(CONFIG))
            for name in needed:
                if getattr(settings, name) in (None, []):
                    flag = f"the argument {name}" if name in arguments else _flag_name(name)
                    raise UsageError(
                        f"got no {name.replace('_', ' ')}; give {flag}, the key {name} in a --config file, or the "
                        f"environment variable {variable_name(name)}"
                    )
            command(**{place: settings}, **given)

        flags = [
            _parameter(
                name,
                info,
                positional=name in arguments,
                needed=name in needed,
                panel=None if name in arguments else _panel(model, name),
            )
            for name, info in fields.items()
        ]
        config = inspect.Parameter(CONFIG, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Config)
        rest = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in others]
        everything = [*flags, config, *rest]
        made: Any = functools.wraps(command)(run)
        # Typer reads both
        made.__signature__ = inspect.Signature(everything)
        made.__annotations__ = {parameter.name: parameter.annotation for parameter in everything}
        return made

    return decorate


def refuse_empty_paths(command: Callable[..., Any]) -> None:
    """Let a command refuse an empty path, which Python takes for the folder in which the command was started.

    A shell gives one for a variable that is not set.
    """
    for parameter in inspect.signature(command).parameters.values():
        kind, *infos = get_args(parameter.annotation) if get_origin(parameter.annotation) is Annotated else (None,)
        paths = any(one is Path or Path in get_args(one) for one in (kind, *get_args(kind)))
        if paths and infos[0].parser is None:
            infos[0].parser = path


def path(text: str | Path) -> Path:
    """The path that a text names; the help calls its type by the name of this function.

    Raises:
        typer.BadParameter: for an empty text, or a URL.
    """
    found = path_or_url(text)
    try:
        return only_local(found)
    except ValueError as error:
        raise typer.BadParameter(f"{error}; give a path") from None


def path_or_url(text: str | Path) -> Path:
    """The place that a text names; the help calls its type by the name of this function.

    Raises:
        typer.BadParameter: for an empty text, or a URL of an unknown kind.
    """
    # Typer hands over defaults as well
    if not str(text).strip():
        raise typer.BadParameter("got an empty path; give the path of a file or folder, or . for this folder")
    try:
        return place(text)
    except UsageError as error:
        raise typer.BadParameter(str(error)) from None


def _is_settings(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Settings)


def _flag_name(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _panel(model: type[Settings], name: str) -> str | None:
    """The heading under which the help shows a field: that of the most general class that declares it."""
    return next(
        kind.panel
        for kind in reversed(model.__mro__)
        if issubclass(kind, Settings) and name in inspect.get_annotations(kind)
    )


def _parameter(name: str, info: FieldInfo, *, positional: bool, needed: bool, panel: str | None) -> inspect.Parameter:
    """The parameter of a command for a field."""
    least, most, text = _bounds(info)
    notes = [text, _default(name, info), "required" if needed else ""]
    words = [*(info.description or "").split(), *(f"[{note}]" for note in notes if note)]
    kind: Any = typer.Argument if positional else typer.Option
    option = kind(help=escape(" ".join(words)), min=least, max=most, show_default=False, rich_help_panel=panel)
    base: Any = info.annotation
    if any(one in (Location, LocalPath) for one in (base, *get_args(base))):
        several = get_origin(base) is list
        parser = path_or_url if Location in (base, *get_args(base)) else path
        option.parser, base = parser, list[Path] if several else Path
    annotation = base if NoneType in get_args(base) else base | None
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[annotation, option]
    )


def _bounds(info: FieldInfo) -> tuple[float | None, float | None, str]:
    """Least and largest value of a field for Typer, which knows inclusive bounds only; others are a text instead."""
    bounds = {
        key: getattr(limit, key) for limit in info.metadata for key in ("ge", "gt", "le", "lt") if hasattr(limit, key)
    }
    if bounds.keys() & {"gt", "lt"}:
        low = f"{bounds['gt']}<" if "gt" in bounds else f"{bounds['ge']}<=" if "ge" in bounds else ""
        high = f"<{bounds['lt']}" if "lt" in bounds else f"<={bounds['le']}" if "le" in bounds else ""
        return None, None, f"{low}x{high}"
    return bounds.get("ge"), bounds.get("le"), ""


def _default(name: str, info: FieldInfo) -> str:
    """The default of a field as the help shows it, "" for one without a value, whose description says what holds."""
    value = None if info.is_required() else info.get_default(call_default_factory=True)
    if value is None or value == []:
        return ""
    if isinstance(value, bool):
        return f"default: {_flag_name(name if value else f'no-{name}').removeprefix('--')}"
    return f"default: {', '.join(map(str, value)) if isinstance(value, list) else value}"
