import json
import multiprocessing
import os
import random
import time

import pytest

from cryptomnesia import UsageError
from cryptomnesia.auditing.store import Store, StoreError, batch_count

ABOUT = {"model": "tiny", "steps": 3}
BATCHES = 12


def work(folder, pause=None, together=1):
    """What a worker does: a row for each of three units of a batch, and a line in its own log for every batch.

    Args:
        folder: of the run.
        pause: called between the steps of a batch, each of which is a line in the file `steps`.
        together: workers that must hold a batch before this one goes on with its first.
    """
    store = Store(folder)

    def step():
        with (folder / "steps").open("a") as steps:
            steps.write("step\n")
        if pause is not None:
            pause()

    for number in store.work("scores", BATCHES):
        (folder / f"here-{os.getpid()}").touch()
        while len(list(folder.glob("here-*"))) < together:
            time.sleep(0.01)
        step()
        asset = store.keep(f"picture {number}".encode(), ".png")
        step()
        store.write("scores", number, [{"unit": 3 * number + k, "score": number / 7, "asset": asset} for k in range(3)])
        with (folder / f"log-{os.getpid()}").open("a") as log:
            log.write(f"{number}\n")
        step()


def briefly():
    """Long enough for the test to see a step and kill the worker before the next one."""
    time.sleep(0.05)


def forever():
    time.sleep(3600)


def started(folder, pause=None, together=1):
    process = multiprocessing.get_context("fork").Process(target=work, args=(folder, pause, together))
    process.start()
    return process


def steps(folder):
    file = folder / "steps"
    return len(file.read_text().splitlines()) if file.exists() else 0


def logged(folder):
    return sorted(int(line) for log in folder.glob("log-*") for line in log.read_text().split())


def test_a_run_is_done_batch_by_batch(tmp_path):
    store = Store.create(tmp_path / "run", ABOUT)
    assert store.done("scores") == 0
    work(tmp_path / "run")
    assert store.done("scores") == BATCHES
    rows = store.rows("scores")
    assert [row["unit"] for row in rows] == list(range(3 * BATCHES))
    assert (tmp_path / "run" / rows[-1]["asset"]).read_bytes() == b"picture 11"
    # a finished run is left alone
    work(tmp_path / "run")
    assert logged(tmp_path / "run") == list(range(BATCHES))


def test_killed_at_any_moment_a_run_goes_on(tmp_path):
    whole = tmp_path / "whole"
    Store.create(whole, ABOUT)
    work(whole)
    moments = random.Random(0)
    folder = tmp_path / "killed"
    Store.create(folder, ABOUT)
    kills = 0
    while Store(folder).done("scores") < BATCHES:
        before, wanted = Store(folder).done("scores"), steps(folder) + moments.randint(1, 5)
        process = started(folder, pause=briefly)
        while process.is_alive() and steps(folder) < wanted:
            time.sleep(0.005)
        kills += process.is_alive()
        process.kill()
        process.join()
        assert Store(folder).done("scores") >= before
    assert kills >= 5
    assert Store(folder).rows("scores") == Store(whole).rows("scores")
    assert not list((folder / "scores").glob("*.unfinished"))


def test_two_workers_share_a_run(tmp_path):
    folder = tmp_path / "run"
    Store.create(folder, ABOUT)
    workers = [started(folder, together=2) for _ in range(2)]
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert logged(folder) == list(range(BATCHES))
    assert len(list(folder.glob("log-*"))) == 2


def test_a_worker_takes_over_what_a_dead_one_held(tmp_path):
    folder = tmp_path / "run"
    Store.create(folder, ABOUT)
    slow = started(folder, pause=forever)
    while not steps(folder):
        time.sleep(0.01)
    quick = started(folder)
    while Store(folder).done("scores") < BATCHES - 1:
        time.sleep(0.01)
    assert quick.is_alive()  # it waits for the one batch
    slow.kill()
    slow.join()
    quick.join()
    assert quick.exitcode == 0
    assert logged(folder) == list(range(BATCHES))


def test_another_run_is_refused(tmp_path):
    Store.create(tmp_path / "run", ABOUT)
    assert Store.create(tmp_path / "run", {"steps": 3, "model": "tiny"}).about == ABOUT
    assert Store.create(tmp_path / "run", {**ABOUT, "skipped": {"steps": "broken"}}).about == ABOUT
    with pytest.raises(UsageError, match="holds another run: steps is 4, there 3; give another folder"):
        Store.create(tmp_path / "run", {**ABOUT, "steps": 4})


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no run in"):
        Store(tmp_path)
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(UsageError, match="is no run directory"):
        Store(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({"format": 3, "about": {}}))
    with pytest.raises(UsageError, match="run format 3, this version reads 2; update cryptomnesia"):
        Store(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({"format": 1, "about": {}}))
    with pytest.raises(UsageError, match="run format 1, this version reads 2; audit again into another folder"):
        Store(tmp_path)


def test_a_calibration_of_no_run_is_not_taken_for_the_run_s(tmp_path):
    (tmp_path / "calibration.safetensors").touch()
    with pytest.raises(UsageError, match=r"holds a calibration\.safetensors that is of no run; give another folder"):
        Store.create(tmp_path, ABOUT)
    assert not (tmp_path / "run.json").exists()


def test_a_file_of_a_killed_process_is_removed_when_its_batch_is_written(tmp_path):
    store = Store.create(tmp_path / "run", ABOUT)
    store.write("scores", 0, [{"unit": 0}])
    abandoned = store.path("scores", 1).with_name("00001.parquet.4711.unfinished")
    abandoned.touch()
    store.write("scores", 1, [{"unit": 1}])
    assert [file.name for file in (store.folder / "scores").iterdir()].count(abandoned.name) == 0
    assert store.rows("scores") == [{"unit": 0}, {"unit": 1}]


def test_settings_that_differ_are_named_once(tmp_path):
    about = {"settings": {"steps": 3, "seed": 0}, "fingerprint": {"steps": 3, "weights": {"unet": "a"}}}
    Store.create(tmp_path / "run", about)
    other = {"settings": {"steps": 4, "seed": 0}, "fingerprint": {"steps": 4, "weights": {"unet": "b"}}}
    with pytest.raises(UsageError, match=r"another run: steps is 4, there 3; weights.unet is b, there a; give"):
        Store.create(tmp_path / "run", other)


def test_without_room_the_run_stays_usable(tmp_path, monkeypatch):
    store = Store.create(tmp_path / "run", ABOUT)
    store.write("scores", 0, [{"unit": 0}])

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cryptomnesia.auditing.store.pq.write_table", full)
    with pytest.raises(
        StoreError, match="No space left on device; make room, or give another place; what is there is intact"
    ):
        store.write("scores", 1, [{"unit": 1}])
    monkeypatch.undo()
    assert store.rows("scores") == [{"unit": 0}]
    store.write("scores", 1, [{"unit": 1}])
    assert store.rows("scores") == [{"unit": 0}, {"unit": 1}]
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="Not a directory; a file is where a folder is needed"):
        Store.create(tmp_path / "file" / "run", ABOUT)


def test_batches_hold_all_units():
    assert [batch_count(units, 8) for units in (0, 1, 8, 9)] == [0, 1, 1, 2]
