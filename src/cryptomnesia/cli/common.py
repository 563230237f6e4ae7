"""What the commands share: the application, their options, and the reading of them."""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cryptomnesia.errors import UsageError

if TYPE_CHECKING:
    from cryptomnesia.localizers.methods import Method
    from cryptomnesia.settings import Sampling

app = typer.Typer(
    help="Find, map and stop memorized training images in diffusion models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
ground = typer.Typer(help="The model whose truth is known: train, verify, show.", no_args_is_help=True)
app.add_typer(ground, name="proving-ground")

Model = Annotated[str, typer.Argument(help="A local diffusers folder, a hub id, or `bundled`.")]
Prompt = Annotated[list[str] | None, typer.Option(help="A prompt; may be given more than once.")]
Prompts = Annotated[Path | None, typer.Option(help="A file of prompts: .txt, .csv or .jsonl.")]
References = Annotated[
    Path,
    typer.Option(
        "--prompts",
        help="A file of captions that are not memorized, at least 100; 150 support a false-positive rate of 1%.",
    ),
]
ImagesPerPrompt = Annotated[int, typer.Option(min=1, help="Images per prompt, seeds counted up.")]
Seed = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of the first image of every prompt.")]
FirstSeed = Annotated[int, typer.Option(min=0, max=2**62, help="Seed of the first image.")]
Steps = Annotated[int, typer.Option(min=1, help="Solver steps.")]
Guidance = Annotated[float | None, typer.Option(help="Guidance scale; 7.5, or the bundled model's own, by default.")]
Height = Annotated[int | None, typer.Option(min=1, help="Of the pictures in pixels; the model's own by default.")]
Width = Annotated[int | None, typer.Option(min=1, help="Of the pictures in pixels; the model's own by default.")]
NegativePrompt = Annotated[str | None, typer.Option(help="What the unconditional branch is told, for every image.")]
Dtype = Annotated[
    str | None, typer.Option(help="Of the weights, as in the service: float32 (the default), float16 or bfloat16.")
]
Scheduler = Annotated[
    str, typer.Option(help="ddim, pndm, euler, euler-ancestral, heun, dpm++, unipc, lms, or own for the pipeline's.")
]
Maps = Annotated[
    list[str] | None,
    typer.Option(
        "--map",
        help="collapse (the default), curvature-difference, score-difference, guidance-map, curvature or "
        "bright-ending; the first four also with -checkpoint behind, against --baseline. May be given more than once.",
    ),
]
At = Annotated[
    float | None,
    typer.Option(
        help="Evaluation to look at, from 0; negative numbers count from the end, 0.3 is three tenths into the run. By "
        "default the last one, of curvature the one before, of collapse 0.3."
    ),
]
BaselineModel = Annotated[
    str | None, typer.Option(help="A less-trained checkpoint: a local folder or a hub id; the bundled model has one.")
]
EmptyCaption = Annotated[
    bool, typer.Option(help="Compare with an empty caption, where the run has no unconditional branch.")
]
Probes = Annotated[
    int | None,
    typer.Option(
        min=1, help="Products with the Jacobian per image, a multiple of 8: 16, or at most 512 with --wanted."
    ),
]
Wanted = Annotated[
    float | None, typer.Option(help="Relative error of a curvature map at which to stop before all probes are spent.")
]
Memory = Annotated[float, typer.Option(min=0.001, help="What a curvature map may take beyond the model, in GiB.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Images per call of the pipeline.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def wanted_images(
    prompt: list[str] | None, prompts: Path | None, images_per_prompt: int, seed: int
) -> tuple[list[str], list[int]]:
    """Prompt and seed of every image, for the prompts of `--prompt` or of the file of `--prompts`."""
    from cryptomnesia.prompts import read_prompts

    if bool(prompt) == (prompts is not None):
        raise UsageError("give either --prompt (once or more) or --prompts FILE")
    wanted = list(prompt or []) if prompts is None else read_prompts(prompts)
    if any(not each.strip() for each in wanted):
        raise UsageError("got an empty --prompt; give a text")
    captions = [each for each in wanted for _ in range(images_per_prompt)]
    return captions, [seed + number for _ in wanted for number in range(images_per_prompt)]


def sampling(
    model: str,
    steps: int,
    guidance: float | None = None,
    height: int | None = None,
    width: int | None = None,
    negative: str | None = None,
) -> "Sampling":
    """The settings that were asked for; guidance is by default the bundled model's own, else diffusers' default."""
    from cryptomnesia.pipelines.loading import BUNDLED
    from cryptomnesia.settings import Sampling

    if guidance is None and model == BUNDLED:
        from cryptomnesia.proving_ground import BUNDLE
        from cryptomnesia.proving_ground.manifest import Manifest

        guidance = Manifest.load(BUNDLE).guidance
    options = {} if negative is None else {"negative_prompt": negative}
    return Sampling(steps, 7.5 if guidance is None else guidance, height, width, options)


def bundled(model: str, name: str) -> Path | None:
    """A file or folder that comes with the bundled model, None for any other model or where there is none."""
    from cryptomnesia.pipelines.loading import BUNDLED
    from cryptomnesia.proving_ground import BUNDLE

    return BUNDLE / name if model == BUNDLED and (BUNDLE / name).exists() else None


def print_skipped(skipped: dict[str, str], count: int, index: Path) -> None:
    """Name the training images that an index could not use, on standard error."""
    for path, why in list(skipped.items())[:10]:
        typer.echo(f"skipped {path}: {why}", err=True)
    if count > 10:
        typer.echo(f"skipped {count - 10} more; all are named in {index / 'index.json'}", err=True)


def chosen_methods(
    maps: list[str] | None,
    at: float | None,
    empty_caption: bool,
    probes: int | None,
    wanted: float | None,
    memory: float,
) -> "list[Method]":
    """The maps that were asked for."""
    from cryptomnesia.localizers import LOCALIZERS, DiagonalEstimator
    from cryptomnesia.localizers.methods import method

    probes = probes or (16 if wanted is None else 512)
    estimator = DiagonalEstimator(probes=probes, wanted=wanted, memory=round(memory * 2**30))
    names = dict.fromkeys(maps or [next(iter(LOCALIZERS))])
    step = int(at) if at is not None and at.is_integer() else at
    return [method(name, step=step, estimator=estimator, empty=empty_caption) for name in names]


def baseline_pipeline(
    model: str, baseline: str | None, methods: "list[Method]", scheduler: str, dtype: str | None
) -> Any:
    """The pipeline that maps are compared with, None if none of them needs one."""
    from cryptomnesia.localizers.methods import CHECKPOINT
    from cryptomnesia.pipelines.loading import load_pipeline

    if all(each.baseline != "checkpoint" for each in methods):
        if baseline is not None:
            raise UsageError(f"got --baseline but no map that uses it; give --map with {CHECKPOINT} behind its name")
        return None
    early = bundled(model, "early")
    baseline = baseline or (None if early is None else str(early))
    return None if baseline is None else load_pipeline(baseline, scheduler=scheduler, dtype=dtype)


def make_folder(folder: Path) -> None:
    """Make `folder`, and see that it can be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UsageError(f"cannot write to {folder}: {error.strerror}; give another folder") from None


def check_writable(path: Path) -> None:
    """See that the file `path` could be written, without making anything."""
    if path.is_dir():
        raise UsageError(f"{path} is a folder; give the name of a file")
    there = next(folder for folder in path.absolute().parents if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise UsageError(f"cannot write to {there}; give another place")


def image_file(folder: Path, what: str, number: int, seed: int) -> Path:
    """The file of an image, without its suffix; `what` keeps those of several commands apart."""
    return folder / f"{what}-{number:04}-seed-{seed}"


def remove_old(folder: Path, what: str) -> None:
    """Remove the files of an earlier run's images."""
    for old in folder.iterdir():
        if re.fullmatch(rf"{what}-\d{{4,}}-seed-\d+\.(png|safetensors)", old.name):
            old.unlink()
