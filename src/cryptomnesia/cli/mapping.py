"""`localize` and `calibrate-maps`: where a picture is memorized."""

import json
from pathlib import Path
from typing import Annotated

import typer

from cryptomnesia.cli.common import (
    At,
    BaselineModel,
    BatchSize,
    EmptyCaption,
    Guidance,
    Maps,
    Model,
    Probes,
    Scheduler,
    Steps,
    app,
    baseline_pipeline,
    bundled,
    check_writable,
    guidance_for,
    make_folder,
    wanted_prompts,
)
from cryptomnesia.errors import UsageError
from cryptomnesia.report.console import print_regions, progress_bar
from cryptomnesia.report.rows import Region, regions_to_json


@app.command()
def localize(
    model: Model,
    prompt: Annotated[list[str] | None, typer.Option(help="A prompt; may be given more than once.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="A file of prompts: .txt, .csv or .jsonl.")] = None,
    images_per_prompt: Annotated[int, typer.Option(min=1, help="Images per prompt, seeds counted up.")] = 1,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of the first image of every prompt.")] = 0,
    steps: Steps = 50,
    guidance: Guidance = None,
    scheduler: Scheduler = "ddim",
    maps: Maps = None,
    at: At = -1,
    baseline: BaselineModel = None,
    empty_caption: EmptyCaption = False,
    probes: Probes = 32,
    calibration: Annotated[
        Path | None,
        typer.Option(help="Made by `calibrate-maps`, turns maps into masks; the bundled model brings its own."),
    ] = None,
    rate: Annotated[
        float, typer.Option(help="Share of pixels of ordinary pictures above the mask's threshold.")
    ] = 0.01,
    smooth: Annotated[float, typer.Option(min=0.0, help="Blur before the threshold, in latent pixels.")] = 0.0,
    smallest: Annotated[int, typer.Option(min=1, help="Drop regions of fewer latent pixels.")] = 1,
    batch_size: BatchSize = 8,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder for a panel PNG and a .safetensors file of every image.")
    ] = Path("maps"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Generate prompts and map where each picture is memorized; with a calibration also as masks."""
    from safetensors.torch import save_file

    from cryptomnesia.localizers import DiagonalEstimator, Mask
    from cryptomnesia.localizing import MapCalibration, check_methods, localize, method
    from cryptomnesia.models import load_pipeline
    from cryptomnesia.panel import write_maps
    from cryptomnesia.settings import Sampling

    wanted = wanted_prompts(prompt, prompts)
    estimator = DiagonalEstimator(probes=probes)
    names = list(dict.fromkeys(maps or ["curvature-difference"]))
    methods = [method(name, step=at, estimator=estimator, empty=empty_caption) for name in names]
    pipe = load_pipeline(model, scheduler=scheduler)
    other = baseline_pipeline(model, baseline, names, scheduler)
    sampling = Sampling(steps, guidance_for(model, guidance))
    check_methods(pipe, sampling, methods, other)
    fitted = None
    if calibration is not None:
        fitted = MapCalibration.load(calibration)
        fitted.check(pipe, sampling, methods, other)
    elif (own := bundled(model, "maps.safetensors")) is not None:
        fitted = MapCalibration.load(own)
        try:
            fitted.check(pipe, sampling, methods, other)
        except UsageError as error:
            typer.echo(f"maps without masks: {error}", err=True)
            fitted = None
    if fitted is not None:
        for reference in fitted.references.values():
            reference.threshold(rate, smooth)
    make_folder(output)
    for old in output.glob("[0-9][0-9][0-9][0-9]*-seed-*"):
        if old.suffix in (".png", ".safetensors"):
            old.unlink()
    every = [each for each in wanted for _ in range(images_per_prompt)]
    seeds = [seed + number for _ in wanted for number in range(images_per_prompt)]
    rows: list[Region] = []
    with progress_bar() as report:
        report("images", 0, len(every))
        for number, found in enumerate(
            localize(
                pipe,
                every,
                seeds,
                sampling,
                methods,
                other=other,
                batch_size=batch_size,
                progress=lambda done: report("images", done, len(every)),
            )
        ):
            masks: dict[str, Mask] = {}
            for name, heat in found.maps.items():
                fraction = p_value = None
                if fitted is not None:
                    reference = fitted.references[name]
                    mask = reference.mask(heat[None], rate=rate, smooth=smooth, smallest=smallest)
                    masks[name] = mask
                    fraction, p_value = mask.fraction.item(), mask.p_value.item()
                rows.append(Region(found.prompt, found.seed, name, heat.mean().item(), fraction, p_value))
            stem = output / f"{number:04}-seed-{found.seed}"
            write_maps(stem.with_suffix(".png"), found, masks)
            tensors = {name: heat.contiguous() for name, heat in found.maps.items()}
            tensors |= {f"{name}/mask": mask.pixels[0] for name, mask in masks.items()}
            unfinished = stem.with_suffix(".unfinished")
            save_file(tensors, unfinished)
            unfinished.replace(stem.with_suffix(".safetensors"))
    if as_json:
        typer.echo(json.dumps(regions_to_json(rows, sampling, rate), indent=2))
    else:
        print_regions(rows, rate)
        typer.echo(f"{len(every)} panels and as many files of maps in {output}")


@app.command()
def calibrate_maps(
    model: Model,
    prompts: Annotated[Path, typer.Option(help="A file of captions that are not memorized, at least 100.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The file to write.")],
    seed: Annotated[int, typer.Option(min=0, max=2**62, help="Seed of the first image.")] = 1_000_000,
    steps: Steps = 50,
    guidance: Guidance = None,
    scheduler: Scheduler = "ddim",
    maps: Maps = None,
    at: At = -1,
    baseline: BaselineModel = None,
    empty_caption: EmptyCaption = False,
    probes: Probes = 32,
    batch_size: BatchSize = 8,
) -> None:
    """Map one picture for every reference prompt, so that `localize` can draw masks with a known error."""
    from cryptomnesia.localizers import DiagonalEstimator
    from cryptomnesia.localizing import MapCalibration, method
    from cryptomnesia.models import load_pipeline
    from cryptomnesia.prompts import read_prompts
    from cryptomnesia.settings import Sampling

    captions = read_prompts(prompts)
    names = list(dict.fromkeys(maps or ["curvature-difference"]))
    estimator = DiagonalEstimator(probes=probes)
    methods = [method(name, step=at, estimator=estimator, empty=empty_caption) for name in names]
    check_writable(output)
    pipe = load_pipeline(model, scheduler=scheduler)
    with progress_bar() as report:
        fitted = MapCalibration.fit(
            pipe,
            captions,
            Sampling(steps, guidance_for(model, guidance)),
            methods,
            other=baseline_pipeline(model, baseline, names, scheduler),
            seed=seed,
            batch_size=batch_size,
            progress=lambda done: report("reference images", done, len(captions)),
        )
    make_folder(output.parent)
    fitted.save(output)
    typer.echo(f"{output}: {', '.join(names)} on {len(captions)} references")
