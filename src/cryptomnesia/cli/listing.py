"""`methods`: every registered method, and the page of one."""

import dataclasses
import inspect
import json
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cryptomnesia.cli.common import AsJson, app
from cryptomnesia.errors import CryptomnesiaError, UsageError
from cryptomnesia.registry import GROUPS, Entry, create, entries
from cryptomnesia.report.console import plain, print_methods
from cryptomnesia.report.rows import Listed

if TYPE_CHECKING:
    from cryptomnesia.pipelines.setup import Setup


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(help="A method whose page is printed.")] = None,
    as_json: AsJson = False,
) -> None:
    """List every registered method with its package and state, or print the page of one method.

    The environment variable CRYPTOMNESIA_PLUGINS=off leaves out the methods of other packages.
    """
    registered = [entry for kind in GROUPS for entry in entries(kind).values()]
    chosen = registered if name is None else [entry for entry in registered if entry.name == name]
    if not chosen:
        known = list(dict.fromkeys(entry.name for entry in registered))
        guess = get_close_matches(str(name), known, n=1)
        raise UsageError(
            f"got the unknown method {name!r}{f' (did you mean {guess[0]}?)' if guess else ''}; known are "
            f"{', '.join(known)}"
        )
    setup = _usual_setup()
    if as_json:
        typer.echo(json.dumps([_listed(entry, setup)._asdict() for entry in chosen], indent=2))
    elif name is None:
        print_methods([_listed(entry, setup) for entry in chosen])
    else:
        typer.echo("\n\n".join(_page(entry, setup) for entry in chosen))


def _usual_setup() -> "Setup | None":
    """The bundled model as it is called by default, for which costs are shown; None if it cannot be loaded."""
    from cryptomnesia.pipelines.loading import BUNDLED, load_pipeline
    from cryptomnesia.pipelines.setup import Setup

    try:
        return Setup.of(load_pipeline(BUNDLED, device="cpu"), {})
    except CryptomnesiaError:
        return None


def _method(entry: Entry) -> tuple[Any, str]:
    """The method, or the class of a family, and its state; None for one that is not ready."""
    try:
        return entry.load() if entry.kind == "family" else create(entry.kind, entry.name), "ready"
    except CryptomnesiaError as error:
        cause = error.__cause__
        state = str(error) if cause is None else f"{type(cause).__name__}: {cause}"
    # the code of another package may raise anything, and may try to end Python
    except (Exception, SystemExit) as error:
        state = f"{type(error).__name__}: {error}"
    return None, " ".join(state.split())


def _listed(entry: Entry, setup: "Setup | None") -> Listed:
    """What the table says of a method."""
    method, state = _method(entry)
    requires: list[str] = []
    cost, summary = None, ""
    # what another package declares may raise anything, and may try to end Python
    try:
        if entry.kind == "family":
            summary = _first_line(method)
        elif method is not None:
            requires, summary = sorted(method.requires), str(method.summary)
            cost = None if setup is None else float(method.cost(setup))
    except (Exception, SystemExit) as error:
        state = f"{type(error).__name__}: {error}"
    return Listed(entry.kind, entry.name, entry.package, entry.version, state, requires, cost, summary)


def _page(entry: Entry, setup: "Setup | None") -> str:
    """What a method declares, as Markdown."""
    row = _listed(entry, setup)
    method, _ = _method(entry)
    facts = {"Package": f"{row.package} {row.version}", "State": row.state}
    parts = [f"# {row.name} ({row.kind})", row.summary]
    if method is None or row.state != "ready" or row.kind == "family":
        parts.append(_facts(facts))
        return "\n\n".join(part for part in parts if part)
    facts["Source"] = method.source
    facts["Requires"] = ", ".join(row.requires) or "nothing"
    if row.cost is not None:
        facts["Cost"] = f"{row.cost:g} denoiser evaluations per image beyond the generation, for the bundled model"
    if row.kind == "localizer" and _is_detector(row.name, method):
        facts["Detector"] = f"the mean of the map is one; use it by `--detector {row.name}`"
    parts += [
        _facts(facts),
        _section("Use when", method.use_when),
        _section("Avoid when", method.avoid_when),
        _section("Settings", _settings(method)),
    ]
    return "\n\n".join(part for part in parts if part)


def _facts(facts: dict[str, str]) -> str:
    return "\n".join(f"- {name}: {plain(fact).plain}" for name, fact in facts.items() if fact)


def _section(title: str, text: str) -> str:
    return f"## {title}\n\n{inspect.cleandoc(text)}" if text else ""


def _settings(method: Any) -> str:
    """The settings of a method with their defaults, one a line."""
    if dataclasses.is_dataclass(method):
        names = [field.name for field in dataclasses.fields(method)]
    else:
        names = [name for name in getattr(method, "__dict__", {}) if not name.startswith("_")]
    return "\n".join(f"- `{name}`: {getattr(method, name)!r}" for name in names)


def _is_detector(name: str, localizer: Any) -> bool:
    """Whether the mean of a localizer's map is a detector."""
    from cryptomnesia.detectors.map_mean import during_run

    return name not in entries("detector") and during_run(localizer)


def _first_line(made_by: Any) -> str:
    """The first line of a docstring."""
    return (inspect.getdoc(made_by) or "").partition("\n")[0]
