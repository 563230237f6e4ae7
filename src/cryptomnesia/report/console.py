"""Tables on standard output, progress bars on standard error."""

import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import isnan
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from cryptomnesia.report import copies
from cryptomnesia.report.rows import Compared, Judged, Listed, Region, what_was_done
from cryptomnesia.report.safeguard import HEADINGS, sentences
from cryptomnesia.report.safeguard import table as safeguard_table

if TYPE_CHECKING:
    from cryptomnesia.auditing.comparison import Comparison
    from cryptomnesia.auditing.evidence import Gate
    from cryptomnesia.auditing.outcome import Outcome
    from cryptomnesia.calibration.outliers import Change, Suspicious
    from cryptomnesia.finding.answers import Found
    from cryptomnesia.finetuning.canaries.result import DoseResponse
    from cryptomnesia.finetuning.course import Course
    from cryptomnesia.matching import Cluster


def print_verdicts(rows: Sequence[Judged]) -> None:
    """One line per image; the evaluation is counted from 0."""
    verdict = rows[0].verdict
    table = Table(title=f"{verdict.detector}, flagged at p ≤ {verdict.fpr:g}", title_justify="left")
    table.add_column("prompt", overflow="fold")
    for heading in ("seed", "score", "p"):
        table.add_column(heading, justify="right")
    table.add_column("verdict", no_wrap=True)
    table.add_column("first flagged step", justify="right")
    done = any(what_was_done(row.verdict) for row in rows)
    if done:
        table.add_column("instead", overflow="fold")
    for row in rows:
        verdict = row.verdict
        step = verdict.first_flagged_step
        table.add_row(
            plain(verdict.prompt or ""),
            str(row.seed),
            f"{verdict.score:.2f}",
            f"{verdict.p_value:.3g}",
            Text(verdict.answer, style="bold red" if verdict.flagged else ""),
            "" if step is None else str(step),
            *([plain(what_was_done(verdict))] if done else []),
        )
    print_wide(table)


def print_found(found: "Found") -> None:
    """One line per picture that was looked for, and what the answers mean."""
    table = Table(
        title=f"{found.controls} controls, retained at p ≤ {found.rate:.3g}, smallest p {found.smallest:.2g}",
        title_justify="left",
    )
    table.add_column("picture", overflow="fold")
    table.add_column("answer", no_wrap=True)
    for heading in ("p", "held by", "masked", "from pure noise"):
        table.add_column(heading, justify="right")
    for answer in found.answers:
        last = answer.restorations[-1] if answer.restorations else None
        held = answer.verdict in ("retained", "reproducible")
        table.add_row(
            plain(answer.name),
            Text(answer.verdict, style="bold red" if held else ""),
            "–" if isnan(answer.p_value) else f"{answer.p_value:.3g}",
            answer.held_by,
            f"{answer.share:.0%}" if held else "",
            "" if last is None else f"{last.copies} of {last.seeds}",
        )
    print_wide(table)
    meanings = found.meanings
    for verdict, meaning in meanings.items():
        print_wide(Text(f"{verdict}: {meaning}"))
    for answer in found.answers:
        for note in answer.notes:
            print_wide(Text.assemble(plain(answer.name), f": {note}"))


def print_course(course: "Course", *, rows: int = 10) -> None:
    """When a training begins to copy, one line per checkpoint, and the first `rows` pictures that come back."""
    print_wide(plain(copies.verdict(course)))
    for points, first in ((course.points, copies.STEPS), (course.scales, copies.SCALES)):
        if points:
            _print_points(course, *copies.table(course, points, first), [bool(one.copied) for one in points])
    for sentence in copies.what_helps(course):
        print_wide(plain(sentence))
    for group in course.duplicates:
        print_wide(plain(f"in the folder more than once: {', '.join(group)}"))
    copied = copies.copied_pictures(course)
    for number, point in copied[:rows]:
        seen = point.seen[number]
        copies_of = f"{seen.copies} of {seen.images} images"
        print_wide(plain(f"{course.pictures[number]}: from step {point.step:,}, {copies_of}"))
    if len(copied) > rows:
        print_wide(Text(f"and {len(copied) - rows} pictures more"))
    for note in course.notes:
        print_wide(plain(note))


def _print_points(course: "Course", headings: list[str], lines: list[list[str]], red: Sequence[bool]) -> None:
    """The table of checkpoints or of scales; `red` are those that copy."""
    table = Table()
    for heading in headings:
        table.add_column(
            heading, justify="left" if heading == "checkpoint" else "right", overflow="fold", no_wrap=False
        )
    copied = headings.index("copied")
    for line, is_red in zip(lines, red, strict=True):
        cells = map(plain, line)
        table.add_row(
            *(Text(cell.plain, "bold red" if is_red and at == copied else "") for at, cell in enumerate(cells))
        )
    print_wide(table)


def print_exposures(measured: "DoseResponse") -> None:
    """One line per number of repetitions, and what follows."""
    table = Table(
        title=f"{measured.reserve} pictures that were never shown, exposure at most {measured.limit:.1f} bits",
        title_justify="left",
    )
    for heading in ("repetitions", "canaries", "exposure (95%)", "extrapolated", "single", "p"):
        table.add_column(heading, justify="right")
    table.add_column("answer", no_wrap=True)
    for dose in measured.doses:
        middle = dose.exposure
        table.add_row(
            str(dose.repetitions),
            str(len(dose.canaries)),
            "–" if isnan(middle.value) else f"{middle.value:.1f} ({middle.low:.1f} to {middle.high:.1f})",
            "–" if isnan(dose.extrapolated) else f"{dose.extrapolated:.1f}",
            str(dose.single),
            "–" if isnan(dose.p_value) else f"{dose.p_value:.2g}",
            Text("stands out", style="bold red") if dose.stands_out else Text(""),
        )
    print_wide(table)
    for sentence in (*measured.conclusion, *measured.notes):
        print_wide(Text(sentence))


def plain(text: str) -> Text:
    """A prompt or path without control characters, which a terminal would obey."""
    return Text("".join("\ufffd" if unicodedata.category(letter) == "Cc" else letter for letter in text))


def print_wide(what: Table | Text) -> None:
    """Print to standard output, 160 columns wide if that is no terminal."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    console.print(what)


def print_regions(rows: Sequence[Region], pixel_fpr: float | None) -> None:
    """One line per map.

    Args:
        rows: what every map says of every picture.
        pixel_fpr: share of ordinary pixels above the threshold of a mask, None without masks.
    """
    title = "maps"
    if pixel_fpr is not None:
        title += f", with masks that hold {100 * pixel_fpr:.3g}% of the pixels of ordinary images"
    table = Table(title=title, title_justify="left")
    table.add_column("prompt", overflow="fold")
    table.add_column("seed", justify="right")
    table.add_column("localizer")
    for heading in ("mean", "p of mean", "region", "p"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            plain(row.prompt),
            str(row.seed),
            row.localizer,
            "nan" if row.mean is None else f"{row.mean:.3g}",
            "" if row.mean_p_value is None else f"{row.mean_p_value:.3g}",
            "" if row.fraction is None else f"{row.fraction:.0%}",
            "" if row.p_value is None else f"{row.p_value:.3g}",
        )
    print_wide(table)


def print_suspicious(rows: Sequence["Suspicious"], captions: Sequence[str]) -> None:
    """One line per reference prompt that looks memorized; `captions` are all reference prompts."""
    table = Table(title="reference prompts that look memorized themselves", title_justify="left")
    table.add_column("number", justify="right")
    table.add_column("prompt", overflow="fold")
    table.add_column("p", justify="right")
    table.add_column("score (usual)", overflow="fold")
    for row in rows:
        scores = [f"{name} {score:.2f} ({row.usual[name]:.2f})" for name, score in row.scores.items()]
        table.add_row(str(row.number), plain(captions[row.number]), f"{row.p_value:.1g}", ", ".join(scores))
    print_wide(table)


def print_changes(changes: Sequence["Change"], detector: str) -> None:
    """The scores from which a detector flags, with and without some references, one line per rate."""
    table = Table(title=f"scores from which {detector} flags", title_justify="left")
    for heading in ("false-positive rate", "with them", "without them"):
        table.add_column(heading, justify="right")
    for change in changes:
        scores = ["too few references" if isnan(score) else f"{score:.2f}" for score in (change.before, change.after)]
        table.add_row(f"{change.fpr:.0%}", *scores)
    print_wide(table)


def print_matches(rows: Sequence[Compared], fpr: float) -> None:
    """One line per picture with its nearest training image."""
    table = Table(title=f"nearest training images, reproduced at p ≤ {fpr:g}", title_justify="left")
    table.add_column("picture", overflow="fold")
    table.add_column("nearest training image", overflow="fold")
    for heading in ("distance", "relative", "p"):
        table.add_column(heading, justify="right")
    table.add_column("verdict", no_wrap=True)
    for row in rows:
        table.add_row(
            plain(row.picture),
            plain(f"{row.training_image} ({row.reading})" if row.reading else row.training_image),
            f"{row.distance:.3g}",
            f"{row.relative:.3g}",
            f"{row.p_value:.3g}",
            Text("reproduced", style="bold red") if row.reproduced else Text("no match"),
        )
    print_wide(table)


def print_clusters(clusters: "Sequence[Cluster]", pictures: int, *, rows: int = 20) -> None:
    """One line per cluster of near-identical training images, the largest first; `pictures` are in the index."""
    from cryptomnesia.matching.sources import as_text

    table = Table(title="near-identical training images", title_justify="left")
    for heading in ("cluster", "pictures"):
        table.add_column(heading, justify="right")
    for heading in ("captions", "for instance"):
        table.add_column(heading, overflow="fold")
    for number, cluster in enumerate(clusters[:rows], start=1):
        captions = [f"{caption or '(none)'} ×{count}" for caption, count in list(cluster.captions.items())[:3]]
        more = [f"and {len(cluster.captions) - 3} more"] if len(cluster.captions) > 3 else []
        table.add_row(
            str(number),
            str(len(cluster)),
            plain(" | ".join([*captions, *more])),
            plain(", ".join(map(as_text, cluster.pictures[:2]))),
        )
    if clusters:
        print_wide(table)
    lines = [f"and {len(clusters) - rows} clusters more"] if len(clusters) > rows else []
    repeated = sum(map(len, clusters))
    print_wide(Text("\n".join([*lines, f"{len(clusters)} clusters, which hold {repeated} of {pictures} pictures"])))


def print_methods(rows: Sequence[Listed]) -> None:
    """One line per registered method."""
    table = Table()
    for heading in ("kind", "name", "package", "version"):
        table.add_column(heading, no_wrap=heading != "package", overflow="fold")
    table.add_column("state", overflow="fold")
    table.add_column("requires")
    table.add_column("cost", justify="right")
    table.add_column("summary", ratio=1)
    for row in rows:
        table.add_row(
            row.kind,
            plain(row.name),
            plain(row.package),
            plain(row.version),
            Text("ready") if row.state == "ready" else Text(plain(row.state).plain, style="bold red"),
            ", ".join(row.requires),
            "" if row.cost is None else f"{row.cost:g}",
            plain(row.summary),
        )
    print_wide(table)
    print_wide(
        Text(
            "cost: denoiser evaluations per image beyond the generation, for the bundled model as it is called by "
            "default; a mitigation costs that for every flagged image"
        )
    )


def print_outcome(found: "Outcome", *, rows: int = 20) -> None:
    """An audit in a table, the worst prompts first, with the gate below it."""
    from cryptomnesia.report.meanings import notes

    table = Table(title=f"{found.detector}, suspected at p ≤ {found.fpr:g}", title_justify="left")
    table.add_column("prompt", overflow="fold")
    table.add_column("evidence", no_wrap=True)
    for heading in ("images", "smallest p", "region", "nearest training image"):
        table.add_column(heading, justify="right")
    for judged in found.prompts[:rows]:
        worst = judged.images[0]
        place = "region" if worst["matched_region"] else "whole" if worst["matched_whole"] else None
        nearest = "" if place is None else worst[f"{place}_path"]
        table.add_row(
            plain(judged.prompt),
            Text(judged.level.name, style="" if judged.level.name in ("none", "unknown") else "bold red"),
            f"{sum(row['level'] == judged.level.name for row in judged.images)} of {len(judged.images)}",
            f"{judged.p_value:.3g}",
            "" if worst["fraction"] is None else f"{worst['fraction']:.0%}",
            plain(nearest),
        )
    print_wide(table)
    if len(found.prompts) > rows:
        print_wide(Text(f"and {len(found.prompts) - rows} prompts more"))
    print_wide(Text(", ".join(f"{count} {name}" for name, count in found.counts.items() if count)))
    _print_safeguard(found)
    gate, limit = found.gate, f"{found.settings.fail_on} or worse, limit {found.gate.limit:.1%}"
    if found.safeguard is not None:
        limit = f"{found.settings.fail_on} or worse behind the guard, limit {found.gate.limit:.1%}"
    lines = [
        f"{gate.outcome}: {gate.share.value:.1%} of prompts ({gate.share.low:.1%} to {gate.share.high:.1%}) {limit}"
        + (f"; {gate.needed} prompts would decide it" if gate.needed else "")
        + ("; no number of prompts can pass a limit of 0, give --max-rate" if gate.limit == 0 and not gate.hits else "")
    ]
    # a reason may come from a package
    print_wide(Text("\n".join([*lines, *(str(plain(note)) for note in notes(found))])))


def _print_safeguard(found: "Outcome") -> None:
    """The shares without a guard and behind it in a table, with what the guard did below it; nothing without one."""
    if found.safeguard is None:
        return
    table = Table(*HEADINGS, title="without and with the safeguard, 95% intervals", title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for line in safeguard_table(found):
        table.add_row(*line)
    print_wide(table)
    # the name of a policy may come from a package
    print_wide(Text("\n".join(str(plain(sentence)) for sentence in sentences(found))))


def print_comparison(found: "Comparison") -> None:
    """What is new and what is gone, with the share of findings before and after."""
    table = Table(title="findings that changed", title_justify="left")
    table.add_column("prompt", overflow="fold")
    for heading in ("", "before", "after"):
        table.add_column(heading, no_wrap=True)
    parts = (
        ("new", found.new),
        ("gone", found.gone),
        ("could not tell", found.unsure),
        ("new behind the guard", found.new_behind),
    )
    for what, changed in parts:
        for prompt, before, after in changed:
            table.add_row(plain(prompt), what, before.name, after.name)
    print_wide(table)
    shares = [_hits(gate) for gate in (found.before, found.after)]
    alone = f"; not compared: {len(found.only_before)} prompts of the first run, {len(found.only_after)} of the second"
    print_wide(Text(f"{shares[0]} before, {shares[1]} after{alone if found.only_before or found.only_after else ''}"))
    behind = [
        f"{_hits(gate)} {when}"
        for gate, when in ((found.before_behind, "before"), (found.after_behind, "after"))
        if gate is not None
    ]
    if behind:
        print_wide(Text(f"behind the guard: {', '.join(behind)}"))


def _hits(gate: "Gate") -> str:
    """How many prompts reach the level of a gate."""
    return f"{gate.hits} of {gate.prompts} ({gate.share.low:.1%} to {gate.share.high:.1%})"


@contextmanager
def progress_bar() -> Iterator[Callable[[str, float, int], None]]:
    """A progress bar on standard error, none if that is no terminal; yields a function report(what, done, total).

    The part of `what` in brackets can change from call to call; the bar stays the same.
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
