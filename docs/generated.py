"""Generate pages while the site is built: one page per method, the tables of methods, the command line, the example.

MkDocs calls the functions `on_*` (see `hooks` in mkdocs.yml). What a page says of a method stands in the method's own
class and module, so that a method is described in one place. Methods that other installed packages register get
pages as well.
"""

import inspect
import json
import logging
import re
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import typer

from cryptomnesia import registry
from cryptomnesia.cli import app
from cryptomnesia.errors import CryptomnesiaError

logger = logging.getLogger("mkdocs.cryptomnesia")
"""Below MkDocs' own logger, so that a warning fails a strict build."""

KINDS = {"detector": "detectors", "localizer": "localizers", "mitigation": "mitigations"}
"""Kind of method → folder of its pages."""

REQUIREMENTS = {
    "guidance": "an unconditional branch in every run, which means guidance above 1 and a model that is not distilled",
    "captions": "captions, so it does not work with unconditional pipelines",
    "checkpoint": "a less-trained checkpoint of the same model",
}
"""What a method can require, in words."""

EXAMPLE = Path(__file__).parent.parent / "examples" / "plugin" / "README.md"
"""The README of the example package, which is a page of the site."""

ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")

PLACEHOLDER = re.compile(r"<!-- methods: (\w+) -->")


# What MkDocs calls


def on_config(config: Any) -> Any:
    """Put the generated pages into the navigation."""
    for section in config["nav"]:
        if "Methods" in section:
            for kind, folder in KINDS.items():
                pages = [{entry.name: f"methods/{folder}/{entry.name}.md"} for entry in ready(kind)]
                section["Methods"].append({folder.capitalize(): pages})
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages."""
    from mkdocs.structure.files import File

    for path, content in pages():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put a table of methods where a page has `<!-- methods: KIND -->`."""
    return PLACEHOLDER.sub(lambda found: comparison(found[1]), markdown)


# The pages


def pages() -> Iterator[tuple[str, str]]:
    """Path and text of every generated page."""
    for kind, folder in KINDS.items():
        for entry in ready(kind):
            yield f"methods/{folder}/{entry.name}.md", method_page(entry)
    yield "reference/commands.md", commands_page(typer.main.get_command(app))
    yield "how-to/example-package.md", EXAMPLE.read_text(encoding="utf-8")


@cache
def ready(kind: str) -> list[registry.Entry]:
    """The registered methods of a kind that can be loaded; a warning names the others."""
    found = []
    for entry in registry.entries(kind).values():
        if (state := entry.state) == "ready":
            found.append(entry)
        else:
            logger.warning("no page for %s: %s", entry.name, state)
    return found


def method_page(entry: registry.Entry) -> str:
    """What a method is, when to use it, what it needs and costs, how it works, and its settings."""
    method = registry.create(entry.kind, entry.name)
    made_by = type(method)
    facts = {
        "Kind": entry.kind,
        "Source": linked(method.source),
        "Package": f"{entry.package} {entry.version}",
        "Requires": requirements(method),
        "Cost per image": cost(method),
    }
    parts = [
        f"# {entry.name}",
        method.summary,
        "\n".join(f"- **{name}**: {fact}" for name, fact in facts.items()),
        "## When to use it",
        inspect.cleandoc(method.use_when),
        "## When not to use it",
        inspect.cleandoc(method.avoid_when),
        "## How it works",
        linked(text_of_module(made_by)),
        *in_the_bench(entry),
        "## Settings",
        f"::: {made_by.__module__}.{made_by.__qualname__}\n"
        "    options:\n"
        "      heading_level: 3\n"
        "      members: []\n"
        "      show_bases: false",
    ]
    return "\n\n".join(parts) + "\n"


def in_the_bench(entry: registry.Entry) -> list[str]:
    """What was measured of a method on the proving grounds, as parts of its page; none where nothing was."""
    rows = []
    for ground, found in bench().items():
        regime = f"`{ground}`", f"{found['guidance']:g}"
        # at a guidance scale that is too high for a model it may reproduce nothing
        known = "reproduced" in found.get("counts", {})
        if entry.kind == "detector" and known and entry.name in found.get("detectors", {}):
            figures = found["detectors"][entry.name]
            against = figures["auc"]["reproduced"]
            caught = figures["tpr_at_1pct"]["reproduced"].get("ordinary")
            rows.append([*regime, *map(figure, (against.get("ordinary"), against.get("fixed_pixels"), caught))])
        if entry.kind == "localizer" and entry.name in found.get("maps", {}).get("localizers", {}):
            figures = found["maps"]["localizers"][entry.name]
            best = figures["oracle_iou"]["reproduced"]
            marked = (figures["marked"].get(group) for group in ("ordinary", "fixed_pixels"))
            rows.append([*regime, figure(figures["iou"]["reproduced"]), f"{best:.3f}", *map(figure, marked)])
    if not rows:
        return []
    heads = {
        "detector": ["AUC, never-planted captions", "AUC, captions that fix most pixels", "caught at 1%"],
        "localizer": [
            "IoU",
            "IoU, best threshold",
            "marked, ordinary pictures",
            "marked, captions that fix most pixels",
        ],
    }[entry.kind]
    page = {"detector": "detection", "localizer": "maps"}[entry.kind]
    link = f"Compared with others on [the page of results](../../results/{page}.md#on-the-proving-grounds)."
    made = "Numbers: `docs/results/bench.json`; the page says which command made which."
    return ["## In the bench", link, grid(["model", "guidance", *heads], rows), made]


@cache
def bench() -> dict[str, Any]:
    """What docs/results/bench.json says, by ground."""
    return json.loads((Path(__file__).parent / "results" / "bench.json").read_text(encoding="utf-8"))["grounds"]


def figure(value: dict[str, float] | None) -> str:
    """A figure with its interval, a dash where there is none."""
    return "–" if value is None else f"{value['value']:.3f} ({value['low']:.3f}–{value['high']:.3f})"


def comparison(kind: str) -> str:
    """All methods of a kind: what each does, requires and costs."""
    if kind not in KINDS:
        raise CryptomnesiaError(f"got the unknown kind {kind!r}; known are {', '.join(KINDS)}")
    rows = []
    for entry in ready(kind):
        method = registry.create(kind, entry.name)
        link = f"[`{entry.name}`]({KINDS[kind]}/{entry.name}.md)"
        rows.append([link, method.summary, short_requirements(method), cost(method), linked(method.source)])
    return grid(["method", "what it does", "requires", "cost per image", "source"], rows)


def commands_page(command: Any) -> str:
    """Every command with its arguments and options."""
    parts = [
        "# Commands",
        "`cryptomnesia COMMAND --help` prints the same. What the exit codes mean is said in "
        "[Use the command line](../how-to/command-line.md#exit-codes).",
    ]
    for path, one in subcommands(command, ()):
        parts.append(f"## {' '.join(path)}")
        parts.append(inspect.cleandoc(one.help or ""))
        rows = [[parameter_name(parameter), parameter_help(parameter)] for parameter in one.params]
        rows = [row for row in rows if row[0] != "`--help`"]
        if rows:
            parts.append(grid(["argument or option", "meaning"], rows))
    return "\n\n".join(parts) + "\n"


# Their parts


def requirements(method: Any) -> str:
    """What a method requires, in a sentence."""
    return "; ".join(REQUIREMENTS[name] for name in sorted(method.requires)) or "nothing"


def short_requirements(method: Any) -> str:
    """What a method requires, by name."""
    return ", ".join(sorted(method.requires)) or "nothing"


def cost(method: Any) -> str:
    """What a method costs in the bundled model's own set-up."""
    evaluations = method.cost(bundled_setup())
    if not evaluations:
        return "no further evaluation"
    return f"{evaluations:g} further evaluation{'' if evaluations == 1 else 's'} of the denoiser"


@cache
def bundled_setup() -> Any:
    """The bundled model, with its less-trained checkpoint, called with its own defaults."""
    from cryptomnesia.pipelines.loading import load_pipeline
    from cryptomnesia.pipelines.setup import Setup
    from cryptomnesia.proving_ground import BUNDLE

    return Setup.of(load_pipeline("bundled"), {}, checkpoint=load_pipeline(str(BUNDLE / "early")))


def linked(text: str) -> str:
    """A text whose arXiv numbers are links."""
    return ARXIV.sub(r"[arXiv:\1](https://arxiv.org/abs/\1)", text)


def text_of_module(made_by: type) -> str:
    """The docstring of the module that defines a method, with its first line as a sentence of its own."""
    return inspect.cleandoc(sys.modules[made_by.__module__].__doc__ or "")


def subcommands(command: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command that is no group, with the words that call it."""
    inner = getattr(command, "commands", None)
    if inner is None:
        yield path, command
        return
    for name in sorted(inner):
        yield from subcommands(inner[name], (*path, name))


def parameter_name(parameter: Any) -> str:
    """How an argument or option is written."""
    if parameter.param_type_name == "argument":
        return f"`{(parameter.metavar or parameter.name).upper()}`"
    return ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))


def parameter_help(parameter: Any) -> str:
    """What an argument or option means, with its default where it has one."""
    text = " ".join((getattr(parameter, "help", None) or "").split())
    default = parameter.default
    if isinstance(default, bool) or default is None or callable(default) or default == () or not str(default):
        return text
    return text if str(default) in text else f"{text} Default: `{default}`.".strip()


def grid(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    header = list(header)
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |" for cells in lines)
