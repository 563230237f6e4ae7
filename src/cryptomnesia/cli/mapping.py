"""`localize` and `calibrate-maps`: where a picture is memorized."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cryptomnesia.cli.common import (
    AsJson,
    At,
    BaselineModel,
    BatchSize,
    Dtype,
    EmptyCaption,
    FirstSeed,
    Guidance,
    Height,
    ImagesPerPrompt,
    Maps,
    Memory,
    Model,
    NegativePrompt,
    Probes,
    Prompt,
    Prompts,
    References,
    Scheduler,
    Seed,
    Steps,
    Wanted,
    Width,
    app,
    baseline_pipeline,
    bundled,
    check_writable,
    chosen_methods,
    image_file,
    make_folder,
    remove_old,
    sampling,
    wanted_images,
)
from cryptomnesia.errors import UsageError
from cryptomnesia.report.console import print_regions, progress_bar
from cryptomnesia.report.rows import Region, regions_to_json

if TYPE_CHECKING:
    from cryptomnesia.localization import Located


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
    dtype: Dtype = None,
    maps: Maps = None,
    at: At = None,
    baseline: BaselineModel = None,
    empty_caption: EmptyCaption = False,
    probes: Probes = None,
    wanted: Wanted = None,
    memory: Memory = 2.0,
    calibration: Annotated[
        Path | None,
        typer.Option(help="Made by `calibrate-maps`, turns maps into masks; the bundled model brings its own."),
    ] = None,
    rate: Annotated[
        float, typer.Option(help="Share of pixels of ordinary pictures above the mask's threshold.")
    ] = 0.05,
    smooth: Annotated[float, typer.Option(min=0.0, help="Blur before the threshold, in latent pixels.")] = 0.0,
    smallest: Annotated[int, typer.Option(min=1, help="Drop regions of fewer latent pixels.")] = 1,
    batch_size: BatchSize = 8,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder for a panel PNG and a .safetensors file of every image.")
    ] = Path("maps"),
    as_json: AsJson = False,
) -> None:
    """Generate prompts and map where each picture is memorized; with a calibration also as masks."""
    from cryptomnesia.calibration.maps import MapCalibration
    from cryptomnesia.localization import localize
    from cryptomnesia.localizers.methods import check_methods
    from cryptomnesia.pipelines.loading import load_pipeline
    from cryptomnesia.report.panel import write_maps

    captions, seeds = wanted_images(prompt, prompts, images_per_prompt, seed)
    methods = chosen_methods(maps, at, empty_caption, probes, wanted, memory)
    pipe = load_pipeline(model, scheduler=scheduler, dtype=dtype)
    other = baseline_pipeline(model, baseline, methods, scheduler, dtype)
    settings = sampling(model, steps, guidance, height, width, negative_prompt)
    check_methods(pipe, settings, methods, other)
    fitted = None if calibration is None else MapCalibration.load(calibration)
    if calibration is None and (own := bundled(model, "maps.safetensors")) is not None:
        fitted = MapCalibration.load(own)
        try:
            fitted.check(pipe, settings, methods, other)
        except UsageError as error:
            typer.echo(f"maps without masks: {error}", err=True)
            fitted = None
    if fitted is None and (rate, smooth, smallest) != (0.05, 0.0, 1):
        raise UsageError("--rate, --smooth and --smallest are of masks, which need a --calibration; see calibrate-maps")
    rows: list[Region] = []
    with progress_bar() as report:
        report("images", 0, len(captions))
        found = localize(
            pipe,
            captions,
            seeds,
            settings,
            methods,
            other=other,
            calibration=fitted,
            rate=rate,
            smooth=smooth,
            smallest=smallest,
            batch_size=batch_size,
            progress=lambda done: report("images", done, len(captions)),
        )
        make_folder(output)
        for number, located in enumerate(found):
            if number == 0:
                # not before it is known that there will be new ones
                remove_old(output, "maps")
            stem = image_file(output, "maps", number, located.seed)
            panel, tensors = stem.with_suffix(".png"), stem.with_suffix(".safetensors")
            write_maps(panel, located)
            _save(tensors, located)
            rows += [Region.of(located, name, panel, tensors) for name in located.maps]
    if as_json:
        evaluations = {each.name: each.localizer.step for each in methods}
        told = regions_to_json(rows, model, scheduler, settings, evaluations, None if fitted is None else rate)
        typer.echo(json.dumps(told, indent=2))
    else:
        print_regions(rows, rate)
        typer.echo(f"{len(captions)} panels and as many files of maps in {output}")


def _save(path: Path, located: "Located") -> None:
    """Maps, their standard errors and masks as one file."""
    from safetensors.torch import save_file

    tensors = {name: heat.contiguous() for name, heat in located.maps.items()}
    tensors |= {f"{name}/error": error.contiguous() for name, error in located.errors.items()}
    tensors |= {f"{name}/mask": mask.pixels.contiguous() for name, mask in located.masks.items()}
    unfinished = path.with_suffix(".unfinished")
    save_file(tensors, unfinished)
    unfinished.replace(path)


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
    dtype: Dtype = None,
    maps: Maps = None,
    at: At = None,
    baseline: BaselineModel = None,
    empty_caption: EmptyCaption = False,
    probes: Probes = None,
    wanted: Wanted = None,
    memory: Memory = 2.0,
    batch_size: BatchSize = 8,
) -> None:
    """Map one picture for every reference prompt, so that `localize` can draw masks with a known error."""
    from cryptomnesia.calibration.maps import MapCalibration
    from cryptomnesia.pipelines.loading import load_pipeline
    from cryptomnesia.prompts import read_prompts

    captions = read_prompts(prompts)
    methods = chosen_methods(maps, at, empty_caption, probes, wanted, memory)
    check_writable(output)
    pipe = load_pipeline(model, scheduler=scheduler, dtype=dtype)
    with progress_bar() as report:
        fitted = MapCalibration.fit(
            pipe,
            captions,
            sampling(model, steps, guidance, height, width, negative_prompt),
            methods,
            other=baseline_pipeline(model, baseline, methods, scheduler, dtype),
            seed=seed,
            batch_size=batch_size,
            progress=lambda done: report("reference images", done, len(captions)),
        )
    make_folder(output.parent)
    fitted.save(output)
    typer.echo(f"{output}: {', '.join(each.name for each in methods)} on {len(captions)} references")
