"""The kinds of inputs: how they are drawn, and what has to hold for each."""

import io
import json
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st
from safetensors.torch import save_file

from cryptomnesia import ImageIndex
from cryptomnesia.auditing.outcome import outcome
from cryptomnesia.auditing.scoring import score
from cryptomnesia.auditing.store import Store
from cryptomnesia.calibration.stored import Calibration
from cryptomnesia.detectors import detector
from cryptomnesia.files import _content
from cryptomnesia.prompts import read_prompts
from cryptomnesia.report.sarif import sarif
from fuzzing import settings_inputs
from fuzzing.command_lines import Wrong, command_lines, try_command
from fuzzing.mutations import damaged, edited, edited_rows, json_file, values
from fuzzing.samples import PROMPTS, Samples


@dataclass(frozen=True)
class Area:
    """A kind of inputs.

    Attributes:
        inputs: samples → strategy that draws an input.
        prepare: samples, an empty folder and a stack that cleans up → function that tries an input, and returns None
            where it was used, or the message where it was refused.
        weight: share of the inputs.
    """

    inputs: Callable[[Samples], st.SearchStrategy]
    prepare: Callable[[Samples, Path, ExitStack], Callable[[Any], str | None]]
    weight: float = 1.0


# ---- prompts


def _parquet(rows):
    """The bytes of a Parquet file, None for rows that are no table."""
    file = io.BytesIO()
    try:
        pq.write_table(pa.Table.from_pylist(rows), file)
    except (pa.ArrowException, TypeError, ValueError, OverflowError, AttributeError):
        return None
    return file.getvalue()


def _prompt_files():
    """(suffix, bytes) of valid prompt files."""
    lines = "\n".join(json.dumps({"prompt": text}) for text in PROMPTS)
    quoted = ['"' + text.replace('"', '""') + '"' for text in PROMPTS]
    yield ".txt", "\n".join(PROMPTS).encode()
    yield ".csv", "\n".join(["number,prompt", *(f"{number},{text}" for number, text in enumerate(quoted))]).encode()
    yield ".tsv", "\n".join(["number\tprompt", *(f"{number}\t{text}" for number, text in enumerate(quoted))]).encode()
    yield ".jsonl", lines.encode()
    yield ".parquet", _parquet([{"prompt": text} for text in PROMPTS])


@st.composite
def _prompt_inputs(draw):
    suffix, content = draw(st.sampled_from(list(_prompt_files())))
    kind = draw(st.sampled_from(["damaged"] * 3 + ["lines"] * 4 + ["text", "bytes", "swapped", "utf-16", "bom"]))
    if kind == "damaged":
        return suffix, draw(damaged(content))
    if kind == "bytes":
        return suffix, draw(st.binary(max_size=200))
    if kind == "text":
        return suffix, draw(st.text(max_size=200)).encode("utf-8", "surrogatepass")
    if kind == "swapped":
        return suffix, draw(st.sampled_from(list(_prompt_files())))[1]
    if kind == "utf-16":
        return suffix, content.decode("utf-8", "replace").encode("utf-16")
    if kind == "bom":
        return suffix, b"\xef\xbb\xbf" * draw(st.integers(1, 2)) + content
    if suffix == ".parquet":
        return suffix, _parquet(draw(edited_rows([{"prompt": text, "number": 1} for text in PROMPTS]))) or b""
    if suffix == ".jsonl":
        return suffix, b"\n".join(draw(st.lists(json_file({"prompt": PROMPTS[0], "seed": 1}), min_size=1, max_size=3)))
    separator = {".csv": ",", ".tsv": "\t"}.get(suffix, " ")
    cell = st.one_of(
        st.sampled_from(["prompt", "a", '"', '""', "\r", "\x00", "", " ", "a" * 200_000]), st.text(max_size=12)
    )
    rows = draw(st.lists(st.lists(cell, max_size=4), max_size=6))
    return suffix, "\n".join(separator.join(row) for row in [["prompt"], *rows]).encode("utf-8", "surrogatepass")


def _prepare_prompts(samples, folder, stack):
    def try_one(given):
        suffix, content = given
        path = folder / f"prompts{suffix}"
        path.write_bytes(content)
        found = list(read_prompts(path))
        if not found or not all(isinstance(text, str) and text.strip() for text in found):
            raise Wrong(f"the prompts are {found!r}")
        for text in found:
            text.encode()

    return try_one


# ---- runs and their tables


@st.composite
def _run_inputs(draw, samples):
    """(file in the run, its new bytes; None removes it)."""
    name = draw(
        st.sampled_from(["run.json"] * 6 + ["images", "scores", "calibration.safetensors", "references", "extra"])
    )
    if name == "run.json":
        return name, draw(json_file(samples.run_json))
    if name == "calibration.safetensors":
        content = samples.calibration.read_bytes()
        return name, draw(st.none() | damaged(content))
    if name == "extra":
        return draw(st.sampled_from(["images/00001.parquet", "scores/1.parquet", "images/x.parquet", "locks"])), b"x"
    file = f"{name}/00000.parquet"
    content = (samples.run / file).read_bytes()
    return file, draw(st.none() | damaged(content))


@st.composite
def _table_inputs(draw, samples):
    stage = draw(st.sampled_from(["images", "scores"]))
    file = f"{stage}/00000.parquet"
    kind = draw(st.sampled_from(["rows"] * 6 + ["other", "values"]))
    if kind == "rows":
        return file, _parquet(draw(edited_rows(samples.rows[stage]))) or b""
    if kind == "other":
        return file, samples.batch("scores" if stage == "images" else "images").read_bytes()
    return file, _parquet(draw(st.lists(st.dictionaries(st.text(max_size=5), values, max_size=3), max_size=3))) or b""


def _prepare_run(samples, folder, stack):
    run = shutil.copytree(samples.run, folder / "run")

    def try_one(given):
        name, content = given
        path = run / name
        before = path.read_bytes() if path.is_file() else None
        if path.is_dir():
            return "it is a folder"
        if content is None:
            path.unlink(missing_ok=True)
        else:
            path.write_bytes(content)
        scores = (run / "scores" / "00000.parquet").read_bytes() if name.startswith("images") else None
        listed = _listing(run)
        try:
            found = outcome(Store(run))
            json.dumps(found.to_json(), allow_nan=False)
            json.dumps(sarif(found), allow_nan=False)
            if name.startswith(("images", "calibration")):
                score(Store(run))
        finally:
            leftover = _listing(run) - listed
            if scores is not None:
                (run / "scores" / "00000.parquet").write_bytes(scores)
            path.unlink(missing_ok=True) if before is None else path.write_bytes(before)
        if leftover:
            raise Wrong(f"{leftover} was left")

    return try_one


def _listing(folder):
    return {str(path) for path in folder.rglob("*")}


# ---- calibrations


@st.composite
def _calibration_inputs(draw, samples):
    """The bytes of a file, or (header, tensors to leave out, whether the checksum is made anew)."""
    content = samples.calibration.read_bytes()
    about, tensors = samples.parts
    kind = draw(st.sampled_from(["damaged"] * 3 + ["header"] * 4 + ["start", "bytes", "length"]))
    if kind == "damaged":
        return draw(damaged(content))
    if kind == "start":
        # the header alone, where damage hurts most
        length = 8 + int.from_bytes(content[:8], "little")
        return draw(damaged(content[:length])) + content[length:]
    if kind == "bytes":
        return draw(st.binary(max_size=300))
    if kind == "length":
        return draw(st.integers(0, 2**64 - 1)).to_bytes(8, "little") + content[8:]
    left_out = draw(st.lists(st.sampled_from(sorted(tensors)), max_size=2))
    return draw(edited(about)), left_out, draw(st.booleans())


def _prepare_calibration(samples, folder, stack):
    path, drift = folder / "calibration.safetensors", detector("drift")
    _, tensors = samples.parts

    def try_one(given):
        if isinstance(given, bytes):
            path.write_bytes(given)
        else:
            about, left_out, renewed = given
            kept = {name: value for name, value in tensors.items() if name not in left_out}
            if renewed and isinstance(about, dict):
                about = {key: value for key, value in about.items() if key != "content"}
                # the checksum is of what JSON reads
                about["content"] = _content(json.loads(json.dumps(about)), kept)
            save_file(kept, path, metadata={"about": json.dumps(about)})
        calibration = Calibration.load(path)
        scores = calibration.null(drift)
        if not np.isfinite(scores[:, -1].numpy()).all():
            raise Wrong("the null holds NaN")

    return try_one


# ---- indexes


@st.composite
def _index_inputs(draw, samples):
    """(file in the index, its new bytes; None removes it)."""
    names = sorted(path.name for path in samples.index.iterdir() if path.suffix in (".json", ".npy"))
    name = draw(st.sampled_from(names))
    content = (samples.index / name).read_bytes()
    if name.endswith(".json") and draw(st.integers(0, 3)):
        return name, draw(json_file(json.loads(content)))
    return name, draw(st.none() | damaged(content))


def _prepare_index(samples, folder, stack):
    index = shutil.copytree(samples.index, folder / "index")

    def try_one(given):
        name, content = given
        path = index / name
        before = path.read_bytes()
        if content is None:
            path.unlink()
        else:
            # a memory-mapped file must not be cut under its reader
            path.unlink()
            path.write_bytes(content)
        try:
            found = ImageIndex(index)
            found.search([samples.picture])
            found.match([samples.picture], fpr=0.5)
        finally:
            path.unlink(missing_ok=True)
            path.write_bytes(before)

    return try_one


AREAS: dict[str, Area] = {
    "prompts": Area(lambda samples: _prompt_inputs(), _prepare_prompts),
    "runs": Area(_run_inputs, _prepare_run),
    "tables": Area(_table_inputs, _prepare_run),
    "calibrations": Area(_calibration_inputs, _prepare_calibration),
    "indexes": Area(_index_inputs, _prepare_index),
    "settings": Area(lambda samples: settings_inputs.inputs(), settings_inputs.prepare),
    "command lines": Area(lambda samples: command_lines(), try_command, weight=0.3),
}
