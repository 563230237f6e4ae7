import json
import random
import shutil
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cryptomnesia import UsageError
from cryptomnesia.auditing.outcome import outcome
from cryptomnesia.auditing.scoring import score
from cryptomnesia.auditing.store import Store


@pytest.fixture
def run(audited, tmp_path):
    """A copy of the finished run."""
    return shutil.copytree(audited.folder, tmp_path / "run")


def edit(folder, change):
    path = folder / "run.json"
    held = json.loads(path.read_text())
    change(held["about"])
    path.write_text(json.dumps(held))


def edit_rows(folder, stage, change):
    path = min((folder / stage).glob("*.parquet"))
    rows = pq.ParquetFile(path).read().to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows), path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda about: about.pop("settings"), "run.json is damaged or edited: settings: Field required; audit again"),
        (lambda about: about.update(prompts=[1]), "run.json is damaged or edited: prompts.0: Input should be a valid"),
        (lambda about: about.update(prompts=["a", "a"]), "run.json is damaged or edited: prompts are repeated"),
        (lambda about: about.update(skipped_count="1"), "skipped_count: Input should be a valid integer, got '1'"),
        (lambda about: about["settings"].update(steps=0), "got steps = 0"),
        (lambda about: about["settings"].update(seed=7), "rows that are not of the 6 images of the run; delete that"),
        (lambda about: about["methods"].pop("localizer"), "methods.localizer: Field required"),
        (lambda about: about.update(index=["tiles", "3"]), "index.1: Input should be a valid integer"),
    ],
)
def test_an_edited_run_is_refused(run, change, words):
    edit(run, change)
    with pytest.raises(UsageError, match=words):
        outcome(Store(run))


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": 2}', '{"format": 2, "about": 3}', '{"format": [' + "[" * 100_000]
)
def test_a_run_that_is_no_run_is_refused(run, text):
    (run / "run.json").write_text(text)
    with pytest.raises(UsageError, match="is no run directory"):
        Store(run)


@pytest.mark.parametrize(
    ("stage", "change", "words"),
    [
        ("images", lambda rows: rows[0].pop("p_value"), "0.p_value: Field required"),
        ("images", lambda rows: rows.reverse(), "holds 6 rows that are not of the 6 images of the run"),
        (
            "images",
            lambda rows: rows[0].update(p_value=1.5),
            "0.p_value: expected a number from 0 to 1, or NaN",
        ),
        ("images", lambda rows: rows[0].update(map=[[1.0], [1.0, 2.0]]), "0.map: expected rows of one length"),
        ("scores", lambda rows: rows[0].update(level="sure"), "0.level: Input should be 'none', 'unknown', "),
        ("scores", lambda rows: rows.pop(), "holds 5 rows that are not of the 6 images"),
    ],
)
def test_edited_rows_are_refused(run, stage, change, words):
    edit_rows(run, stage, change)
    with pytest.raises(UsageError, match=words):
        outcome(Store(run))


@pytest.mark.parametrize("content", [b"", b"PAR1", b"x" * 100, None])
def test_a_broken_table_says_what_to_delete(run, content):
    path = sorted((run / "images").glob("*.parquet"))[0]
    path.write_bytes(path.read_bytes()[:-20] if content is None else content)
    with pytest.raises(
        UsageError, match=f"{path} is damaged .*; delete it, and run `cryptomnesia audit` with the same"
    ):
        outcome(Store(run))


def test_no_flipped_bit_changes_what_a_run_says(run):
    path = min((run / "images").glob("*.parquet"))
    whole, expected, draw = path.read_bytes(), str(Store(run).rows("images")), random.Random(0)
    refused = 0
    for _ in range(300):
        data = bytearray(whole)
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(data)
        try:
            found = str(Store(run).rows("images"))
        except UsageError:
            refused += 1
        else:
            assert found == expected
    assert refused > 150


def test_columns_of_norms_that_do_not_fit_are_refused(run):
    edit_rows(run, "images", lambda rows: [row.update({"norm:z": ["a"]}) for row in rows])
    with pytest.raises(UsageError, match=r"the norms and signals of the run are damaged \(.*\); audit again"):
        score(Store(run))


def test_the_calibration_of_another_run_is_refused(run, calibration):
    other = replace(calibration, fingerprint={**calibration.fingerprint, "steps": 7})
    other.save(run / "calibration.safetensors")
    with pytest.raises(
        UsageError, match=r"calibration.safetensors is not the calibration of the run: .*put the run's own"
    ):
        score(Store(run))
