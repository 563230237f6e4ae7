"""`audit`, `report`, `rescore`, `compare`: a model and a prompt set in, evidence out."""

import json
from contextlib import redirect_stdout
from importlib.resources import files
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cryptomnesia.cli.common import Engine, app, check_folder, check_writable, make_folder, print_skipped
from cryptomnesia.cli.options import path_or_url, settings_flags
from cryptomnesia.errors import UsageError
from cryptomnesia.report.console import print_comparison, print_outcome, progress_bar
from cryptomnesia.settings import AuditSettings

if TYPE_CHECKING:
    from cryptomnesia.auditing.outcome import Outcome
    from cryptomnesia.auditing.store import Store

Run = Annotated[Path, typer.Argument(parser=path_or_url, help="Folder of a finished run, or its URL.")]


@app.command()
@settings_flags(arguments=["model"], needed=["model", "prompts"])
def audit(
    settings: AuditSettings,
    output: Annotated[
        Path,
        typer.Option(
            "-o",
            "--output",
            parser=path_or_url,
            help="Folder of the run, or a URL such as s3://bucket/run. If it holds a stopped run, this run goes on.",
        ),
    ] = Path("audit-run"),
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Processes that share the run. Here they share the cores: 1 unless given, and on CPUs one per core is "
            "fastest. On Ray there is one for every GPU, or every core without GPUs, unless given.",
        ),
    ] = None,
    engine: Engine = "local",
    dry_run: Annotated[bool, typer.Option(help="Only say what the run would cost.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Judge a model by a set of prompts.

    Exit code 0: the share of prompts with a finding is below the limit. 1: it is above. 3: too few prompts to decide.
    --fail-on says what counts as a finding, and --max-rate is the limit. With --guard only what a guard returns counts.
    """
    from cryptomnesia.auditing import audited, cost
    from cryptomnesia.auditing.outcome import outcome

    model, prompts = settings.model, settings.prompts
    # both are needed, and `settings_flags` saw to it
    assert model is not None
    assert prompts is not None
    values = settings.model_dump(exclude={"model", "prompts"})
    if dry_run:
        typer.echo(str(cost.estimate(model, prompts, **values)))
        return
    check_folder(output)
    with progress_bar() as report:
        store = audited.audit(model, prompts, output, workers=workers, engine=engine, progress=report, **values)
    print_skipped(store.about["skipped"], store.about["skipped_count"], settings.index or output / "index")
    found = outcome(store)
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=2))
    else:
        print_outcome(found)
    raise typer.Exit(found.gate.exit_code)


_BY_SUFFIX = {".html": "html", ".htm": "html", ".json": "json", ".sarif": "sarif", ".md": "card"}
"""Suffix of a report's file → its format, if none is given."""


@app.command()
def report(
    run: Run,
    kind: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="table, html, json, schema (of the JSON), sarif, card (for a model card) or answers (to questions of "
            "the EU code of practice and NIST AI 600-1). By default the output's suffix decides (.html, .json, "
            ".sarif, .md for the card), else table.",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", parser=path_or_url, help="A file, instead of standard output.")
    ] = None,
    fail_on: Annotated[
        str | None, typer.Option(help="Level of evidence that counts against the model; the run's own by default.")
    ] = None,
    max_rate: Annotated[
        float | None, typer.Option(help="Share of prompts that may reach that level; the run's own by default.")
    ] = None,
    embed_images: Annotated[
        bool, typer.Option(help="Put pictures into the HTML; they may be what was memorized.")
    ] = False,
    training_images: Annotated[
        Path | None,
        typer.Option(
            help="With embedded images: the folder of the training images, or their shard, to show the nearest ones."
        ),
    ] = None,
) -> None:
    """Report a finished run; loads no model, and ends with exit code 0 also if the audit failed."""
    from cryptomnesia.auditing.outcome import outcome
    from cryptomnesia.auditing.store import Store
    from cryptomnesia.files import write_whole

    if kind is None:
        kind = "table" if output is None else _BY_SUFFIX.get(output.suffix.lower(), "table")
    _check_pictures(kind, embed_images=embed_images, training=training_images)
    if output is not None:
        check_writable(output)
    store = Store(run)
    found = outcome(store, fail_on=fail_on, max_rate=max_rate)
    if training_images is not None:
        _check_training(found, training_images)
    if kind == "table" and output is None:
        print_outcome(found)
        return
    text = _report(kind, found, store, embed_images, training_images)
    if output is None:
        typer.echo(text)
    else:
        make_folder(output.parent)
        try:
            write_whole(output, text)
        except OSError as error:
            raise UsageError(f"cannot write {output} ({error.strerror or error}); give another place") from None
        typer.echo(str(output))


@app.command()
def rescore(
    run: Run,
    detector: Annotated[
        str | None, typer.Option(help="Detector whose score makes an image suspected; the run's own by default.")
    ] = None,
    fpr: Annotated[
        float | None,
        typer.Option(
            help="False-positive rate: the share of ordinary images that are suspected; the run's own by default."
        ),
    ] = None,
    fdr: Annotated[
        float | None,
        typer.Option(
            help="False-discovery rate: the share of the suspected prompts that is ordinary at most, on average; the "
            "run's own by default."
        ),
    ] = None,
) -> None:
    """Judge the images of a finished run again, by another detector or rate, without generating them."""
    from cryptomnesia.auditing.outcome import outcome
    from cryptomnesia.auditing.scoring import score
    from cryptomnesia.auditing.store import Store

    store = Store(run)
    # refuses a run that is not finished
    outcome(store)
    score(store, detector=detector, fpr=fpr, fdr=fdr)
    print_outcome(outcome(store))


@app.command()
def compare(
    before: Run,
    after: Annotated[Path, typer.Argument(parser=path_or_url, help="Folder of another finished run, or its URL.")],
    fail_on: Annotated[str, typer.Option(help="Level of evidence that counts as a finding.")] = "corroborated",
) -> None:
    """Say which findings are new in a run, and which are gone; exit code 1 if any is new, also behind a guard."""
    from cryptomnesia.auditing.comparison import compare
    from cryptomnesia.auditing.evidence import Level
    from cryptomnesia.auditing.outcome import outcome
    from cryptomnesia.auditing.store import Store
    from cryptomnesia.report.meanings import notes

    if fail_on not in Level.__members__:
        raise UsageError(f"got the unknown level {fail_on!r}; give suspected, corroborated or confirmed")
    runs = {folder: outcome(Store(folder)) for folder in (before, after)}
    found = compare(runs[before], runs[after], least=Level[fail_on])
    print_comparison(found)
    for folder, run in runs.items():
        for note in notes(run):
            typer.echo(f"{folder}: {note}", err=True)
    raise typer.Exit(1 if found.new or found.new_behind else 0)


def _check_pictures(kind: str, *, embed_images: bool, training: Path | None) -> None:
    """Refuse options for pictures that the report would not use.

    Raises:
        UsageError: saying what to change.
    """
    from cryptomnesia.matching.sources import check_source

    if training is not None:
        check_source(training)
    if embed_images and kind != "html":
        raise UsageError(f"got --embed-images for the format {kind}; give --format html, or leave it out")
    if training is not None and not embed_images:
        raise UsageError("got --training-images without --embed-images; give both, or leave it out")


def _check_training(found: "Outcome", training: Path) -> None:
    """Say which training images of a run are not in the folder that is given for them.

    Raises:
        UsageError: if the run was compared with none.
    """
    from cryptomnesia.matching.sources.opening import content_of

    if found.about["index"] is None:
        raise UsageError("got --training-images, and the run was compared with none; leave it out")
    paths = [row[f"{place}_path"] for judged in found.prompts for row in judged.images for place in ("whole", "region")]
    named = {path for path in paths if path is not None}
    if gone := sorted(path for path in named if content_of(training, path) is None):
        typer.echo(f"{len(gone)} of {len(named)} training images are not in {training}, {gone[0]} for one", err=True)


def _report(kind: str, found: "Outcome", store: "Store", embed_images: bool, training: Path | None) -> str:
    from cryptomnesia.report.html import html
    from cryptomnesia.report.markdown import answers, model_card
    from cryptomnesia.report.sarif import sarif

    if kind == "table":
        with redirect_stdout(StringIO()) as table:
            print_outcome(found)
        return table.getvalue().rstrip()
    if kind == "html":
        return html(found, store, embed_images=embed_images, training=training)
    if kind == "schema":
        return (files("cryptomnesia.report") / "static" / "report.schema.json").read_text(encoding="utf-8").rstrip()
    if kind in ("json", "sarif"):
        return json.dumps(found.to_json() if kind == "json" else sarif(found), indent=2)
    if kind in ("card", "answers"):
        return model_card(found) if kind == "card" else answers(found)
    raise UsageError(f"got the unknown format {kind!r}; give table, html, json, schema, sarif, card or answers")
