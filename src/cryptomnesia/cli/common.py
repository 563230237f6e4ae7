"""What the commands share: the application, their options, and the reading of them."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from cryptomnesia.errors import UsageError

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
Maps = Annotated[
    list[str] | None,
    typer.Option(
        "--map",
        help="curvature-difference (the default), score-difference, guidance-map, curvature or bright-ending; the "
        "first three also with -checkpoint behind, against --baseline. May be given more than once.",
    ),
]
At = Annotated[int, typer.Option(help="Evaluation to look at, from 0; negative numbers count from the end.")]
BaselineModel = Annotated[
    str | None, typer.Option(help="A less-trained checkpoint: a local folder or a hub id; the bundled model has one.")
]
EmptyCaption = Annotated[
    bool, typer.Option(help="Compare with an empty caption, where the run has no unconditional branch.")
]
Probes = Annotated[int, typer.Option(min=16, help="Products with the Jacobian per image, a multiple of 16.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Images per call of the pipeline.")]


def wanted_prompts(prompt: list[str] | None, prompts: Path | None) -> list[str]:
    """The prompts of `--prompt` or of the file of `--prompts`, whichever was given."""
    from cryptomnesia.prompts import read_prompts

    if bool(prompt) == (prompts is not None):
        raise UsageError("give either --prompt (once or more) or --prompts FILE")
    wanted = list(prompt or []) if prompts is None else read_prompts(prompts)
    if any(not each.strip() for each in wanted):
        raise UsageError("got an empty --prompt; give a text")
    return wanted


def bundled(model: str, name: str) -> Path | None:
    """A file or folder that comes with the bundled model, None for any other model or where there is none."""
    from cryptomnesia.models import BUNDLED
    from cryptomnesia.proving_ground import BUNDLE

    return BUNDLE / name if model == BUNDLED and (BUNDLE / name).exists() else None


def baseline_pipeline(model: str, baseline: str | None, maps: list[str], scheduler: str) -> Any:
    """The pipeline that maps are compared with, None if none of them needs one."""
    from cryptomnesia.localizing import CHECKPOINT
    from cryptomnesia.models import load_pipeline

    if not any(name.endswith(CHECKPOINT) for name in maps):
        if baseline is not None:
            raise UsageError(f"got --baseline but no map that uses it; give --map with {CHECKPOINT} behind its name")
        return None
    early = bundled(model, "early")
    baseline = baseline or (None if early is None else str(early))
    return None if baseline is None else load_pipeline(baseline, scheduler=scheduler)


def guidance_for(model: str, guidance: float | None) -> float:
    """The guidance scale that was asked for, else the bundled model's own, else diffusers' default."""
    from cryptomnesia.models import BUNDLED

    if guidance is not None:
        return guidance
    if model != BUNDLED:
        return 7.5
    from cryptomnesia.proving_ground import BUNDLE
    from cryptomnesia.proving_ground.manifest import Manifest

    return Manifest.load(BUNDLE).guidance


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
