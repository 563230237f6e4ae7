"""`index`: make training images searchable, and find those that are near-identical."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cryptomnesia import __version__
from cryptomnesia.cli.common import AsJson, Engine, app, check_writable, counted, print_skipped
from cryptomnesia.cli.options import path_or_url, settings_flags
from cryptomnesia.engine import LOCAL, check_engine
from cryptomnesia.errors import UsageError
from cryptomnesia.report.console import print_clusters, progress_bar
from cryptomnesia.settings import BuildSettings, DuplicatesSettings

if TYPE_CHECKING:
    from cryptomnesia.matching import Changes, Descriptor

index = typer.Typer(help="Make training images searchable.", no_args_is_help=True)
app.add_typer(index, name="index")


@index.command()
@settings_flags(arguments=["images"], needed=["images"])
def build(
    settings: BuildSettings,
    output: Annotated[
        Path,
        typer.Option(
            "-o",
            "--output",
            parser=path_or_url,
            help="Folder of the index, or a URL such as s3://bucket/index. If it holds a stopped build, this build "
            "goes on.",
        ),
    ],
    engine: Engine = "local",
) -> None:
    """Make an index of training images, by which match and audit find the one that a picture reproduces.

    If the index exists, new and changed pictures are added, and those that are no longer there are removed.
    """
    from cryptomnesia.matching import ImageIndex, Readings

    check_engine(engine)
    descriptor = _descriptor_of(settings, engine)
    with progress_bar() as report:
        built = ImageIndex.build(
            [str(path) for path in settings.images],
            output,
            descriptor,
            readings=Readings(settings.exif, settings.alpha),
            faiss=settings.faiss,
            workers=settings.workers,
            engine=engine,
            progress=lambda done, total: report("pictures", done, total),
        )
    captions = f", {built.captioned} with captions" if built.captioned else ""
    typer.echo(f"{output}: {len(built)} pictures by {descriptor.name}{captions}{_changed(built.changes)}")
    _print_left_out(built.skipped, output)


@index.command()
@settings_flags(arguments=["index"], needed=["index"])
def duplicates(
    settings: DuplicatesSettings,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="A .jsonl file for the captions of these images, which can be given as --prompts."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List clusters of near-identical training images with their captions, the largest first.

    Models memorize above all the pictures that their training set holds many times, so their captions are the first
    prompts to audit.
    """
    from cryptomnesia.files import write_whole
    from cryptomnesia.matching import ImageIndex
    from cryptomnesia.matching.sources import as_text

    if output is not None:
        if output.suffix.lower() != ".jsonl":
            raise UsageError(f"got {output}; give a file whose name ends in .jsonl, which --prompts takes")
        check_writable(output)
    assert settings.index is not None
    opened = ImageIndex(settings.index, descriptor_of(settings.sscd))
    with progress_bar() as report:
        found = opened.duplicates(progress=lambda done, total: report("pictures", done, total))
    rows = [row for number, cluster in enumerate(found, start=1) for row in cluster.rows(number)]
    if output is not None:
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            write_whole(output, "".join(f"{json.dumps(row)}\n" for row in rows))
        except OSError as error:
            raise UsageError(f"cannot write {output} ({error.strerror or error}); give another place") from None
    if as_json:
        clusters = [
            {"size": len(one), "captions": one.captions, "pictures": list(map(as_text, one.pictures))} for one in found
        ]
        about = {"cryptomnesia": __version__, "index": str(settings.index), "descriptor": opened.descriptor.name}
        typer.echo(json.dumps({**about, "pictures": len(opened), "clusters": clusters}, indent=2))
    else:
        print_clusters(found, len(opened))
    if without := sum(1 for cluster in found if "" in cluster.captions):
        typer.echo(f"{counted(without, 'cluster')} with pictures that have no caption, so no prompt", err=True)


def descriptor_of(sscd: Path | None, device: str = "cpu") -> "Descriptor | None":
    """The descriptor SSCD in this file, None without a file; the device is of use to SSCD alone.

    Raises:
        UsageError: if it cannot be loaded, or there is no such device.
    """
    from cryptomnesia.matching.sscd import SSCD, checked_device

    checked_device(device)
    return None if sscd is None else SSCD(sscd, device=device)


def _descriptor_of(settings: BuildSettings, engine: str) -> "Descriptor":
    """The descriptor of an index that is built by an engine. The device has to be one of the machines that compute."""
    from cryptomnesia.matching import SSCD, Tiles

    if settings.sscd is not None and engine != LOCAL:
        return SSCD(settings.sscd).on(settings.device)
    return descriptor_of(settings.sscd, settings.device) or Tiles()


def _changed(changes: "Changes | None") -> str:
    """What a build did to an index that was there, in words."""
    if changes is None or not (changes.unchanged or changes.replaced or changes.removed):
        return ""
    return f"; {changes.added} added, {changes.replaced} described anew, {changes.removed} removed"


def _print_left_out(skipped: Mapping[str, str], folder: Path) -> None:
    """Name some of what was left out and count all of it by reason, on standard error."""
    from cryptomnesia.matching.sources import NOT_PICTURES, as_text, by_reason, ordered

    pictures = {as_text(name): why for name, why in ordered(skipped).items() if not why.startswith(NOT_PICTURES)}
    print_skipped(pictures, len(pictures), folder)
    others = [as_text(name) for name in ordered(skipped) if skipped[name].startswith(NOT_PICTURES)]
    if skipped:
        reasons = ", ".join(f"{count} {why}" for why, count in by_reason(skipped).items())
        names = f" ({', '.join(others[:3])}{', …' if len(others) > 3 else ''})" if others else ""
        typer.echo(f"left out: {reasons}{names}; all are named in {folder / 'index.json'}", err=True)
