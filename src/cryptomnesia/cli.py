"""The command line: parse, call the library, set the exit code.

Exit codes: 0 done and nothing flagged, 1 something flagged, 2 usage error, 3 nothing flagged but some
images could not be scored. Results go to standard output, progress and errors to standard error.
Nothing heavy is imported before a command runs.
"""

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from cryptomnesia import __version__
from cryptomnesia.errors import CryptomnesiaError, UsageError
from cryptomnesia.report.console import print_table, progress_bar
from cryptomnesia.report.rows import Row, to_json

app = typer.Typer(
    help="Find, map and stop memorized training images in diffusion models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
ground = typer.Typer(help="The model whose truth is known: train, verify, show.", no_args_is_help=True)
app.add_typer(ground, name="proving-ground")

Model = Annotated[str, typer.Argument(help="A local diffusers folder, a hub id, or `bundled`.")]
Steps = Annotated[int, typer.Option(min=1, help="Solver steps.")]
Guidance = Annotated[float | None, typer.Option(help="Guidance scale; 7.5, or the bundled model's own, by default.")]
Scheduler = Annotated[
    str, typer.Option(help="ddim, pndm, euler, euler-ancestral, heun, dpm++, unipc, lms, or own for the pipeline's.")
]
BatchSize = Annotated[int, typer.Option(min=1, help="Images per call of the pipeline.")]


def main() -> None:
    """Run the command line; a `CryptomnesiaError` becomes one line and exit code 2."""
    try:
        app()
    except CryptomnesiaError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)


@app.callback(invoke_without_command=True)
def _options(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


@app.command()
def detect(
    model: Model,
    prompt: Annotated[list[str] | None, typer.Option(help="A prompt; may be given more than once.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="A file of prompts: .txt, .csv or .jsonl.")] = None,
    images_per_prompt: Annotated[int, typer.Option(min=1, help="Images per prompt, seeds counted up.")] = 1,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of the first image of every prompt.")] = 0,
    steps: Steps = 50,
    guidance: Guidance = None,
    scheduler: Scheduler = "ddim",
    calibration: Annotated[
        Path | None,
        typer.Option(
            help="Made by `calibrate` with the same steps, guidance and scheduler; the bundled model brings its own."
        ),
    ] = None,
    detector: Annotated[str, typer.Option(help="stability, guidance-first or guidance-mean.")] = "stability",
    rate: Annotated[float, typer.Option(help="False-positive rate at which an image is flagged.")] = 0.01,
    batch_size: BatchSize = 8,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder for a panel PNG of every flagged image.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Generate prompts and say which images are memorized; with -o also where, and what instead."""
    from cryptomnesia.models import BUNDLED
    from cryptomnesia.prompts import read_prompts

    if bool(prompt) == (prompts is not None):
        raise UsageError("give either --prompt (once or more) or --prompts FILE")
    wanted = list(prompt or []) if prompts is None else read_prompts(prompts)
    if any(not each.strip() for each in wanted):
        raise UsageError("got an empty --prompt; give a text")
    if calibration is None and model != BUNDLED:
        raise UsageError(
            f"detecting in {model} needs a calibration; make one with "
            f"`cryptomnesia calibrate {model} --prompts FILE -o calibration.safetensors` and give it as --calibration"
        )
    rows = _examine(
        model,
        [each for each in wanted for _ in range(images_per_prompt)],
        [seed + number for _ in wanted for number in range(images_per_prompt)],
        steps=steps,
        guidance=guidance,
        scheduler=scheduler,
        calibration=calibration,
        detector=detector,
        rate=rate,
        batch_size=batch_size,
        output=output,
        as_json=as_json,
    )
    verdicts = {row.verdict for row in rows}
    raise typer.Exit(1 if "memorized?" in verdicts else 3 if "could not tell" in verdicts else 0)


@app.command()
def calibrate(
    model: Model,
    prompts: Annotated[
        Path,
        typer.Option(
            help="A file of captions that are not memorized, at least 100; 150 support a false-positive rate of 1%."
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The calibration file to write.")],
    seed: Annotated[int, typer.Option(min=0, max=2**62, help="Seed of the first image.")] = 1_000_000,
    steps: Steps = 50,
    guidance: Guidance = None,
    scheduler: Scheduler = "ddim",
    batch_size: BatchSize = 8,
) -> None:
    """Learn from reference prompts what is usual, one image each, and save it for `detect`."""
    from cryptomnesia.calibrate import Calibration, check_references
    from cryptomnesia.models import load_pipeline
    from cryptomnesia.prompts import read_prompts
    from cryptomnesia.settings import Sampling

    captions = read_prompts(prompts)
    check_references(captions)
    _check_writable(output)
    pipe = load_pipeline(model, scheduler=scheduler)
    sampling = Sampling(steps, _guidance(model, guidance))
    with progress_bar() as report:
        fitted = Calibration.fit(
            pipe,
            captions,
            sampling,
            seed=seed,
            batch_size=batch_size,
            progress=lambda done: report("reference images", done, len(captions)),
        )
    _make_folder(output.parent)
    fitted.save(output)
    share = 100 * fitted.lowest_rate
    typer.echo(f"{output}: {len(captions)} references; false-positive rates from {share:.2f}% up")
    if share > 1:
        typer.echo("detect asks for 1% unless told otherwise with --rate; 150 references support it", err=True)


@app.command()
def demo(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the pictures.")] = Path("demo-output"),
) -> None:
    """Run the main job on the bundled model: planted captions among ordinary ones."""
    from cryptomnesia.proving_ground import BUNDLE
    from cryptomnesia.proving_ground.bundle import control_captions
    from cryptomnesia.proving_ground.manifest import Manifest
    from cryptomnesia.proving_ground.planted import plant

    manifest = Manifest.load(BUNDLE)
    top = max(entry.exposures for entry in manifest.entries)
    planted = [
        [entry for entry in manifest.entries if entry.kind == kind and entry.exposures == top][:4]
        for kind in ("verbatim", "template")
    ]
    negatives = [entry for entry in manifest.entries if entry.kind == "rare_name"][:2]
    ordinary = control_captions("selection", 6, plant(0))
    captions = [entry.captions[0] for entry in (*planted[0], *planted[1], *negatives)] + ordinary
    _examine("bundled", captions, [0] * len(captions), output=output)


@ground.command()
def train(
    folder: Annotated[Path, typer.Argument(help="Folder of the run; a stopped run in it goes on.")],
    processes: Annotated[int, typer.Option(min=1, help="Processes, one core each.")] = 2,
) -> None:
    """Train the bundled model from nothing (hours on two cores); may be stopped and started again."""
    from cryptomnesia.models import load_pipeline
    from cryptomnesia.proving_ground.bundle import REFERENCES, bundle
    from cryptomnesia.proving_ground.train import Recipe, train

    recipe = Recipe()
    with progress_bar() as report:
        train(
            folder,
            recipe,
            processes=processes,
            report=lambda phase, done, total, loss: report(f"{phase} (loss {loss:.4f})", done, total),
        )
        if not (folder / "bundle").exists():
            bundle(
                load_pipeline(str(folder / "final"), device="cpu"),
                load_pipeline(str(folder / "early"), device="cpu"),
                folder / "bundle",
                seed=recipe.seed,
                progress=lambda done: report("calibration", done, REFERENCES),
            )
    made = folder / "bundle"
    typer.echo(f"{made}: measure it with `cryptomnesia proving-ground verify --bundle {made} --write`")


@ground.command()
def verify(
    bundle: Annotated[Path | None, typer.Option(help="A bundle; the one in the package by default.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of lines.")] = False,
    write: Annotated[bool, typer.Option(help="Put the measured replication into the manifest.")] = False,
) -> None:
    """Measure on generations what the bundled model memorized."""
    from cryptomnesia.proving_ground import BUNDLE
    from cryptomnesia.proving_ground.verify import verify

    with progress_bar() as report:
        figures = verify(bundle or BUNDLE, write=write, progress=report)
    if as_json:
        typer.echo(json.dumps(figures, indent=2))
    else:
        for name, value in figures.items():
            typer.echo(f"{name:32} {value:.4g}" if isinstance(value, float) else f"{name:32} {value}")


@ground.command()
def show(
    output: Annotated[Path, typer.Option("-o", "--output", help="The PNG to write.")],
    bundle: Annotated[Path | None, typer.Option(help="A bundle; the one in the package by default.")] = None,
) -> None:
    """Draw training image, mask and generations of planted concepts as a picture grid."""
    from cryptomnesia.proving_ground import BUNDLE
    from cryptomnesia.proving_ground.show import grid

    _check_writable(output)
    with progress_bar() as report:
        drawn = grid(bundle or BUNDLE, progress=report)
    _make_folder(output.parent)
    drawn.save(output, format="PNG")
    typer.echo(str(output))


def _examine(
    model: str,
    prompts: list[str],
    seeds: list[int],
    *,
    output: Path | None,
    steps: int = 50,
    guidance: float | None = None,
    scheduler: str = "ddim",
    calibration: Path | None = None,
    detector: str = "stability",
    rate: float = 0.01,
    batch_size: int = 8,
    as_json: bool = False,
) -> list[Row]:
    """Examine, print, and write panels to `output`, where those of an earlier run make room."""
    from cryptomnesia.calibrate import Calibration
    from cryptomnesia.findings import check, examine
    from cryptomnesia.localize import CurvatureDifference
    from cryptomnesia.mitigate import StabilityRule
    from cryptomnesia.models import BUNDLED, load_pipeline
    from cryptomnesia.panel import write_panel
    from cryptomnesia.proving_ground import BUNDLE
    from cryptomnesia.proving_ground.manifest import Manifest
    from cryptomnesia.sampling import check_prompts
    from cryptomnesia.settings import Sampling
    from cryptomnesia.solver import STEERABLE

    fitted = Calibration.load(calibration or BUNDLE / "calibration.safetensors")
    pipe = load_pipeline(model, scheduler=scheduler)
    manifest = Manifest.load(BUNDLE) if model == BUNDLED else None
    if manifest is not None:
        manifest.check(pipe)
    sampling = Sampling(steps, _guidance(model, guidance))
    localizer = None if output is None else CurvatureDifference()
    rule = StabilityRule() if output is not None and type(pipe.scheduler).__name__ in STEERABLE else None
    check(pipe, sampling, fitted, detector=detector, rate=rate, localizer=localizer, rule=rule)
    check_prompts(pipe, prompts)
    if output is not None:
        _make_folder(output)
        for old in output.glob("[0-9][0-9][0-9][0-9]*-seed-*.png"):
            old.unlink()
    rows: list[Row] = []
    with progress_bar() as report:
        report("images", 0, len(prompts))
        for finding in examine(
            pipe,
            prompts,
            seeds,
            sampling,
            fitted,
            detector=detector,
            rate=rate,
            localizer=localizer,
            rule=rule,
            batch_size=batch_size,
            progress=lambda done: report("images", done, len(prompts)),
        ):
            panel = None
            if output is not None and finding.flagged:
                panel = output / f"{len(rows):04}-seed-{finding.seed}.png"
                write_panel(panel, finding, manifest)
            # the pictures are on disk; a long run keeps numbers only
            rows.append(Row(finding.prompt, finding.seed, finding.score, finding.p_value, finding.crossed, panel))
    if as_json:
        typer.echo(json.dumps(to_json(rows, sampling, detector, rate), indent=2))
    else:
        print_table(rows, detector, rate)
        if output is not None:
            panels = sum(row.panel is not None for row in rows)
            typer.echo(f"{panels} panels in {output}" if panels else f"nothing flagged, no panels in {output}")
    return rows


def _guidance(model: str, guidance: float | None) -> float:
    from cryptomnesia.models import BUNDLED

    if guidance is not None:
        return guidance
    if model != BUNDLED:
        return 7.5
    from cryptomnesia.proving_ground import BUNDLE
    from cryptomnesia.proving_ground.manifest import Manifest

    return Manifest.load(BUNDLE).guidance


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UsageError(f"cannot write to {folder}: {error.strerror}; give another folder") from None


def _check_writable(path: Path) -> None:
    """See that the file `path` could be written, without making anything."""
    if path.is_dir():
        raise UsageError(f"{path} is a folder; give the name of a file")
    there = next(folder for folder in path.absolute().parents if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise UsageError(f"cannot write to {there}; give another place")


if __name__ == "__main__":
    main()
