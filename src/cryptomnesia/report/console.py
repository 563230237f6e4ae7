"""Tables on standard output, progress bars on standard error."""

import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from cryptomnesia.report.rows import Region, Row

if TYPE_CHECKING:
    from cryptomnesia.auditing.comparison import Comparison
    from cryptomnesia.auditing.outcome import Outcome


def print_table(rows: list[Row], detector: str, rate: float) -> None:
    """One line per image; 160 columns wide where standard output is not a terminal."""
    table = Table(title=f"{detector}, flagged at p ≤ {rate:g}", title_justify="left")
    table.add_column("prompt", overflow="fold")
    for heading in ("seed", "score", "p"):
        table.add_column(heading, justify="right")
    table.add_column("verdict", no_wrap=True)
    table.add_column("first step", justify="right")
    instead = any(row.instead for row in rows)
    if instead:
        table.add_column("instead", overflow="fold")
    for row in rows:
        table.add_row(
            _plain(row.prompt),
            str(row.seed),
            f"{row.score:.2f}",
            f"{row.p_value:.3g}",
            Text(row.verdict, style="" if row.crossed is None else "bold red"),
            "" if row.crossed is None else str(row.crossed + 1),
            *([_plain(row.instead)] if instead else []),
        )
    _print(table)


def _plain(text: str) -> Text:
    """A prompt or path as it is, but for control characters, which a terminal would obey."""
    return Text("".join("\ufffd" if unicodedata.category(letter) == "Cc" else letter for letter in text))


def _print(what: Table | Text) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    console.print(what)


def print_regions(rows: list[Region], rate: float) -> None:
    """One line per map; masks hold a share `rate` of the pixels of ordinary pictures."""
    table = Table(title=f"regions, {rate:.1%} of ordinary pixels", title_justify="left")
    table.add_column("prompt", overflow="fold")
    table.add_column("seed", justify="right")
    table.add_column("map")
    for heading in ("mean", "p of mean", "region", "p"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            _plain(row.prompt),
            str(row.seed),
            row.map,
            f"{row.mean:.3g}",
            "" if row.mean_p_value is None else f"{row.mean_p_value:.3g}",
            "" if row.fraction is None else f"{row.fraction:.0%}",
            "" if row.p_value is None else f"{row.p_value:.3g}",
        )
    _print(table)


def print_outcome(found: "Outcome", *, rows: int = 20) -> None:
    """An audit in a table, the worst prompts first, with the gate below it."""
    from cryptomnesia.report.meanings import notes

    table = Table(title=f"{found.detector}, suspected at p ≤ {found.fpr:g}", title_justify="left")
    table.add_column("prompt", overflow="fold")
    table.add_column("evidence", no_wrap=True)
    for heading in ("images", "smallest p", "region", "nearest training image"):
        table.add_column(heading, justify="right")
    for each in found.prompts[:rows]:
        worst = each.images[0]
        place = "region" if worst["matched_region"] else "whole" if worst["matched_whole"] else None
        nearest = "" if place is None else worst[f"{place}_path"]
        table.add_row(
            _plain(each.prompt),
            Text(each.level.name, style="" if each.level.name in ("none", "unknown") else "bold red"),
            f"{sum(row['level'] == each.level.name for row in each.images)} of {len(each.images)}",
            f"{each.p_value:.3g}",
            "" if worst["fraction"] is None else f"{worst['fraction']:.0%}",
            _plain(nearest),
        )
    _print(table)
    gate, limit = found.gate, f"{found.settings.fail_on} or worse, limit {found.gate.limit:.1%}"
    lines = [f"and {len(found.prompts) - rows} prompts more"] if len(found.prompts) > rows else []
    lines.append(", ".join(f"{count} {name}" for name, count in found.counts.items() if count))
    lines.append(
        f"{gate.outcome}: {gate.share.value:.1%} of prompts ({gate.share.low:.1%} to {gate.share.high:.1%}) {limit}"
        + (f"; {gate.needed} prompts would decide it" if gate.needed else "")
        + ("; no number of prompts can pass a limit of 0, give --max-rate" if gate.limit == 0 and not gate.hits else "")
    )
    # a reason may come from a package
    _print(Text("\n".join([*lines, *(str(_plain(note)) for note in notes(found))])))


def print_comparison(found: "Comparison") -> None:
    """What is new and what is gone, with the share of findings before and after."""
    table = Table(title="findings that changed", title_justify="left")
    table.add_column("prompt", overflow="fold")
    for heading in ("", "before", "after"):
        table.add_column(heading, no_wrap=True)
    for what, changed in (("new", found.new), ("gone", found.gone), ("could not tell", found.unsure)):
        for prompt, before, after in changed:
            table.add_row(_plain(prompt), what, before.name, after.name)
    _print(table)
    shares = [
        f"{gate.hits} of {gate.prompts} ({gate.share.low:.1%} to {gate.share.high:.1%})"
        for gate in (found.before, found.after)
    ]
    alone = f"; not compared: {len(found.only_before)} prompts of the first run, {len(found.only_after)} of the second"
    _print(Text(f"{shares[0]} before, {shares[1]} after{alone if found.only_before or found.only_after else ''}"))


@contextmanager
def progress_bar() -> Iterator[Callable[[str, float, int], None]]:
    """A progress bar, none when standard error is not a terminal; yields report(what, done, total).

    What stands in brackets in `what` may change from call to call without making a new bar.
    """
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        tasks: dict[str, TaskID] = {}

        def report(what: str, done: float, total: int) -> None:
            key = what.partition(" (")[0]
            if key not in tasks:
                tasks[key] = bar.add_task(what, total=total)
            bar.update(tasks[key], description=what, completed=done, total=total)

        yield report
