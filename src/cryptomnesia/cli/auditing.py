"""`audit`, `report`, `rescore`, `compare`: a model and a prompt set in, evidence out."""

import json
from contextlib import redirect_stdout
from importlib.resources import files
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cryptomnesia.cli.common import Dtype, app, check_writable, make_folder, print_skipped
from cryptomnesia.errors import UsageError
from cryptomnesia.report.console import print_comparison, print_outcome, progress_bar

if TYPE_CHECKING:
    from cryptomnesia.auditing.outcome import Outcome
    from cryptomnesia.auditing.store import Store


@app.command()
def audit(
    model: Annotated[str | None, typer.Argument(help="A local diffusers folder, a hub id, or `bundled`.")] = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder of the run; one that was stopped goes on.")
    ] = Path("audit-run"),
    config: Annotated[
        Path | None,
        typer.Option(help="A TOML file with any of these settings; weaker than CRYPTOMNESIA_STEPS=25 and flags."),
    ] = None,
    prompts: Annotated[Path | None, typer.Option(help="A file of prompts: .txt, .csv or .jsonl.")] = None,
    images_per_prompt: Annotated[
        int | None, typer.Option(help="Images per prompt, every one with a seed of its own; 1 by default.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the first image, the others count on; 0 by default.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Solver steps; 50 by default.")] = None,
    guidance: Annotated[
        float | None, typer.Option(help="Guidance scale; 7.5, or the bundled model's own, by default.")
    ] = None,
    height: Annotated[int | None, typer.Option(help="Of the pictures in pixels; the model's own by default.")] = None,
    width: Annotated[int | None, typer.Option(help="Of the pictures in pixels; the model's own by default.")] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What the unconditional branch is told.")] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(help="ddim (the default), pndm, euler, euler-ancestral, heun, dpm++, unipc, lms, or own."),
    ] = None,
    dtype: Dtype = None,
    references: Annotated[
        Path | None, typer.Option(help="Captions that are not memorized, to calibrate on; 150 for a rate of 1%.")
    ] = None,
    calibration: Annotated[Path | None, typer.Option(help="Instead of references: made by `calibrate`.")] = None,
    maps: Annotated[Path | None, typer.Option(help="Instead of references: made by `calibrate-maps`.")] = None,
    detector: Annotated[
        str | None, typer.Option(help="Whose score is a suspicion; drift by default. See `detect`.")
    ] = None,
    rate: Annotated[float | None, typer.Option(help="False-positive rate at which it is; 0.01 by default.")] = None,
    heat: Annotated[str | None, typer.Option("--map", help="Of flagged images; collapse by default.")] = None,
    pixel_rate: Annotated[
        float | None, typer.Option(help="Share of ordinary pixels above a mask's threshold; 0.05 by default.")
    ] = None,
    mitigate: Annotated[bool | None, typer.Option(help="Try the mitigation on flagged images.")] = None,
    index: Annotated[Path | None, typer.Option(help="Training images, made searchable by `index build`.")] = None,
    training_images: Annotated[
        Path | None, typer.Option(help="A folder of training images; an index of them is made in the run.")
    ] = None,
    sscd: Annotated[Path | None, typer.Option(help="The SSCD file that the index was built with.")] = None,
    fail_on: Annotated[
        str | None,
        typer.Option(help="Level of evidence that counts: suspected, corroborated (the default) or confirmed."),
    ] = None,
    max_rate: Annotated[
        float | None,
        typer.Option(help="Share of prompts that may reach it; 0 by default, which cannot be passed."),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images per call of the pipeline; 16 by default.")] = None,
    workers: Annotated[
        int, typer.Option(min=1, help="Processes that share the run and the cores; on CPUs one per core is fastest.")
    ] = 1,
    dry_run: Annotated[bool, typer.Option(help="Only say what the run would cost.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Judge a model by a set of prompts: exit code 0 within the limit, 1 above it, 3 too few prompts to say."""
    from cryptomnesia.auditing.cost import estimate
    from cryptomnesia.auditing.options import resolve
    from cryptomnesia.auditing.outcome import outcome
    from cryptomnesia.auditing.run import audit as run

    flags = {
        "model": model,
        "prompts": prompts,
        "images_per_prompt": images_per_prompt,
        "seed": seed,
        "steps": steps,
        "guidance": guidance,
        "height": height,
        "width": width,
        "negative_prompt": negative_prompt,
        "scheduler": scheduler,
        "dtype": dtype,
        "references": references,
        "calibration": calibration,
        "maps": maps,
        "detector": detector,
        "rate": rate,
        "map": heat,
        "pixel_rate": pixel_rate,
        "mitigate": mitigate,
        "index": index,
        "training_images": training_images,
        "sscd": sscd,
        "fail_on": fail_on,
        "max_rate": max_rate,
        "batch_size": batch_size,
    }
    settings = resolve(flags, config)
    if dry_run:
        typer.echo(str(estimate(settings)))
        return
    with progress_bar() as report:
        store = run(settings, output, workers=workers, progress=report)
    print_skipped(store.about["skipped"], store.about["skipped_count"], settings.index or output / "index")
    found = outcome(store)
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=2))
    else:
        print_outcome(found)
    raise typer.Exit(found.gate.exit_code)


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
