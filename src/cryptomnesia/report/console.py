"""Tables on standard output, progress bars on standard error."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from cryptomnesia.report.rows import Region, Row


def print_table(rows: list[Row], detector: str, rate: float) -> None:
    """One line per image; 160 columns wide where standard output is not a terminal."""
    table = Table(title=f"{detector}, flagged at p ≤ {rate:g}", title_justify="left")
    table.add_column("prompt", overflow="fold")
    for heading in ("seed", "score", "p"):
        table.add_column(heading, justify="right")
    table.add_column("verdict", no_wrap=True)
    table.add_column("first step", justify="right")
    for row in rows:
        table.add_row(
            Text(row.prompt),
            str(row.seed),
            f"{row.score:.2f}",
            f"{row.p_value:.3g}",
            Text(row.verdict, style="" if row.crossed is None else "bold red"),
            "" if row.crossed is None else str(row.crossed + 1),
        )
    _print(table)


def _print(table: Table) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    console.print(table)


def print_regions(rows: list[Region], rate: float) -> None:
    """One line per map; masks hold a share `rate` of the pixels of ordinary pictures."""
    table = Table(title=f"memorized regions, {rate:.1%} of ordinary pixels", title_justify="left")
    table.add_column("prompt", overflow="fold")
    table.add_column("seed", justify="right")
    table.add_column("map")
    for heading in ("mean", "p of mean", "memorized", "p"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            Text(row.prompt),
            str(row.seed),
            row.map,
            f"{row.mean:.3g}",
            "" if row.mean_p_value is None else f"{row.mean_p_value:.3g}",
            "" if row.fraction is None else f"{row.fraction:.0%}",
            "" if row.p_value is None else f"{row.p_value:.3g}",
        )
    _print(table)


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
