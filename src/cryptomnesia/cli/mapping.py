"""`localize` and `calibrate-maps`: where a picture is memorized."""

import json
from pathlib import Path
from typing import Annotated

import typer

from cryptomnesia.cli.common import (
    AsJson,
    At,
    BaselineModel,
    BatchSize,
    EmptyCaption,
    FirstSeed,
    Guidance,
    Height,
    ImagesPerPrompt,
    Maps,
    Model,
    NegativePrompt,
    Probes,
    Prompt,
    Prompts,
    References,
    Scheduler,
    Seed,
    Steps,
    Width,
    app,
    baseline_pipeline,
    bundled,
    check_writable,
    make_folder,
    remove_old,
    sampling,
    wanted_images,
)
from cryptomnesia.errors import UsageError
from cryptomnesia.report.console import print_regions, progress_bar
from cryptomnesia.report.rows import Region, regions_to_json


@app.command()
def localize(
    model: Model,
    prompt: Prompt = None,
    prompts: Prompts = None,
    images_per_prompt: ImagesPerPrompt = 1,
    seed: Seed = 0,
    steps: Steps = 50,
    guidance: Guidance = None,
    height: Height = None,
    width: Width = None,
    negative_prompt: NegativePrompt = None,
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
    as_json: AsJson = False,
) -> None:
    """Generate prompts and map where each picture is memorized; with a calibration also as masks."""
    from safetensors.torch import save_file

    from cryptomnesia.localizers import DiagonalEstimator, Mask
    from cryptomnesia.localizing import MapCalibration, check_methods, localize, method
    from cryptomnesia.models import load_pipeline
    from cryptomnesia.panel import write_maps

    captions, seeds = wanted_images(prompt, prompts, images_per_prompt, seed)
    estimator = DiagonalEstimator(probes=probes)
    names = list(dict.fromkeys(maps or ["curvature-difference"]))
    methods = [method(name, step=at, estimator=estimator, empty=empty_caption) for name in names]
    pipe = load_pipeline(model, scheduler=scheduler)
    other = baseline_pipeline(model, baseline, names, scheduler)
    settings = sampling(model, steps, guidance, height, width, negative_prompt)
    check_methods(pipe, settings, methods, other)
    fitted = None
    if calibration is not None:
        fitted = MapCalibration.load(calibration)
        fitted.check(pipe, settings, methods, other)
    elif (own := bundled(model, "maps.safetensors")) is not None:
        fitted = MapCalibration.load(own)
        try:
            fitted.check(pipe, settings, methods, other)
        except UsageError as error:
            typer.echo(f"maps without masks: {error}", err=True)
            fitted = None
    if fitted is not None:
        for reference in fitted.references.values():
            reference.threshold(rate, smooth)
    make_folder(output)
    remove_old(output, ".png", ".safetensors")
    rows: list[Region] = []
    with progress_bar() as report:
        report("images", 0, len(captions))
        for number, found in enumerate(
            localize(
                pipe,
                captions,
                seeds,
                settings,
                methods,
                other=other,
                batch_size=batch_size,
                progress=lambda done: report("images", done, len(captions)),
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
        typer.echo(json.dumps(regions_to_json(rows, settings, rate), indent=2))
    else:
        print_regions(rows, rate)
        typer.echo(f"{len(captions)} panels and as many files of maps in {output}")


@app.command()
def calibrate_maps(
    model: Model,
    prompts: References,
    output: Annotated[Path, typer.Option("-o", "--output", help="The file to write.")],
    seed: FirstSeed = 1_000_000,
    steps: Steps = 50,
    guidance: Guidance = None,
    height: Height = None,
    width: Width = None,
    negative_prompt: NegativePrompt = None,
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
            sampling(model, steps, guidance, height, width, negative_prompt),
            methods,
            other=baseline_pipeline(model, baseline, names, scheduler),
            seed=seed,
            batch_size=batch_size,
            progress=lambda done: report("reference images", done, len(captions)),
        )
    make_folder(output.parent)
    fitted.save(output)
    typer.echo(f"{output}: {', '.join(names)} on {len(captions)} references")
