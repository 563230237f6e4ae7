"""`audit`, `report`, `rescore`, `compare`: a model and a prompt set in, evidence out."""

import json
from contextlib import redirect_stdout
from importlib.resources import files
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cryptomnesia.cli.common import app, check_writable, make_folder, print_skipped
from cryptomnesia.cli.options import settings_flags
from cryptomnesia.errors import UsageError
from cryptomnesia.report.console import print_comparison, print_outcome, progress_bar
from cryptomnesia.settings import AuditSettings

if TYPE_CHECKING:
    from cryptomnesia.auditing.options import Settings
    from cryptomnesia.auditing.outcome import Outcome
    from cryptomnesia.auditing.store import Store


@app.command()
@settings_flags(arguments=["model"], needed=["model", "prompts"])
def audit(
    settings: AuditSettings,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder of the run; a run that was stopped goes on.")
    ] = Path("audit-run"),
    workers: Annotated[
        int, typer.Option(min=1, help="Processes that share the run and the cores; on CPUs one per core is fastest.")
    ] = 1,
    dry_run: Annotated[bool, typer.Option(help="Only say what the run would cost.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Judge a model by a set of prompts: exit code 0 within the limit, 1 above it, 3 too few prompts to say."""
    from cryptomnesia.auditing.cost import estimate
    from cryptomnesia.auditing.outcome import outcome
    from cryptomnesia.auditing.run import audit as run

    given = _older(settings)
    if dry_run:
        typer.echo(str(estimate(given)))
        return
    with progress_bar() as report:
        store = run(given, output, workers=workers, progress=report)
    print_skipped(store.about["skipped"], store.about["skipped_count"], settings.index or output / "index")
    found = outcome(store)
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=2))
    else:
        print_outcome(found)
    raise typer.Exit(found.gate.exit_code)


def _older(settings: AuditSettings) -> "Settings":
    """The settings for an audit that does not take `AuditSettings` yet; to be removed with that."""
    from cryptomnesia.auditing.options import Settings

    values = settings.model_dump(exclude={"fpr", "pixel_fpr", "localize", "localizer", "mitigation"})
    values |= {
        "rate": settings.fpr,
        "pixel_rate": settings.pixel_fpr,
        "detector": "drift" if settings.detector == "auto" else settings.detector,
        "map": "collapse" if settings.localizer == "auto" else settings.localizer,
        "scheduler": "ddim" if settings.scheduler == "own" else settings.scheduler,
        "steps": settings.steps or 50,
    }
    return Settings(**values)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    kind: Annotated[
        str,
        typer.Option(
            "--format", help="table, html, json, schema (of the JSON), sarif, card (for a model card) or answers."
        ),
    ] = "table",
    output: Annotated[Path | None, typer.Option("-o", "--output", help="A file, instead of standard output.")] = None,
    fail_on: Annotated[
        str | None, typer.Option(help="Judge the gate by another level of evidence than the run did.")
    ] = None,
    max_rate: Annotated[float | None, typer.Option(help="Likewise, by another share of prompts.")] = None,
    embed_images: Annotated[
        bool, typer.Option(help="Put pictures into the HTML; they may be what was memorized.")
    ] = False,
    training_images: Annotated[
        Path | None,
        typer.Option(help="With embedded images: the folder of the training images, to show the nearest ones."),
    ] = None,
) -> None:
    """Report a finished run; loads no model, and ends with exit code 0 whatever the gate says."""
    from cryptomnesia.auditing.outcome import outcome
    from cryptomnesia.auditing.store import Store

    store = Store(run)
    found = outcome(store, fail_on=fail_on, max_rate=max_rate)
    if kind == "table" and output is None:
        print_outcome(found)
        return
    text = _report(kind, found, store, embed_images, training_images)
    if output is None:
        typer.echo(text)
    else:
        check_writable(output)
        make_folder(output.parent)
        output.write_text(text, encoding="utf-8")
        typer.echo(str(output))


@app.command()
def rescore(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    detector: Annotated[str | None, typer.Option(help="Whose score is a suspicion; the run's own by default.")] = None,
    rate: Annotated[float | None, typer.Option(help="False-positive rate at which it is, likewise.")] = None,
) -> None:
    """Judge the images of a finished run anew, from the signals that it stored."""
    from cryptomnesia.auditing.outcome import outcome
    from cryptomnesia.auditing.scoring import score
    from cryptomnesia.auditing.store import Store

    store = Store(run)
    outcome(store)
    score(store, detector=detector, rate=rate)
    print_outcome(outcome(store))


@app.command()
def compare(
    before: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    after: Annotated[Path, typer.Argument(help="Folder of another.")],
    fail_on: Annotated[str, typer.Option(help="Level of evidence that counts as a finding.")] = "corroborated",
) -> None:
    """Say which findings are new in a run, and which are gone; exit code 1 if any is new."""
    from cryptomnesia.auditing.comparison import compare
    from cryptomnesia.auditing.evidence import Level
    from cryptomnesia.auditing.outcome import outcome
    from cryptomnesia.auditing.store import Store

    if fail_on not in Level.__members__:
        raise UsageError(f"got the unknown level {fail_on!r}; give suspected, corroborated or confirmed")
    found = compare(outcome(Store(before)), outcome(Store(after)), least=Level[fail_on])
    print_comparison(found)
    raise typer.Exit(1 if found.new else 0)


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
