import json
import multiprocessing
import os
import random
import signal
import time

import pytest

from cryptomnesia import UsageError
from cryptomnesia.auditing.store import Store, StoreError, batch_count

ABOUT = {"model": "tiny", "steps": 3}
BATCHES = 12


def work(folder, seconds=0.0):
    """What a worker does: a row for each of three units of a batch, and a line in its own log for every batch."""
    store = Store(folder)
    for number in store.work("scores", BATCHES):
        time.sleep(seconds)
        asset = store.keep(f"picture {number}".encode(), ".png")
        store.write("scores", number, [{"unit": 3 * number + k, "score": number / 7, "asset": asset} for k in range(3)])
        with (folder / f"log-{os.getpid()}").open("a") as log:
            log.write(f"{number}\n")


def started(folder, seconds=0.0):
    process = multiprocessing.get_context("spawn").Process(target=work, args=(folder, seconds))
    process.start()
    return process


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
        process = started(folder, seconds=0.3)
        before = Store(folder).done("scores")
        while process.is_alive() and not (folder / "locks").exists():
            time.sleep(0.01)
        process.join(moments.uniform(0, 1.5) if kills < 20 else None)
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.join()
        assert Store(folder).done("scores") >= before
    assert Store(folder).rows("scores") == Store(whole).rows("scores")
    assert not list(folder.rglob("*.unfinished")) or kills


def test_two_workers_share_a_run(tmp_path):
    folder = tmp_path / "run"
    Store.create(folder, ABOUT)
    workers = [started(folder, seconds=0.3) for _ in range(2)]
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert logged(folder) == list(range(BATCHES))
    assert len(list(folder.glob("log-*"))) == 2


def test_a_worker_takes_over_what_a_dead_one_held(tmp_path):
    folder = tmp_path / "run"
    Store.create(folder, ABOUT)
    slow = started(folder, seconds=60)
    while not list(folder.glob("locks/*")):
        time.sleep(0.01)
    quick = started(folder)
    while Store(folder).done("scores") < BATCHES - 1:
        time.sleep(0.01)
    assert quick.is_alive()  # it waits for the one batch
    os.kill(slow.pid, signal.SIGKILL)
    quick.join(20)
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
    (tmp_path / "run.json").write_text(json.dumps({"format": 2, "about": {}}))
    with pytest.raises(UsageError, match="run format 2, this version reads up to 1"):
        Store(tmp_path)


def test_without_room_the_run_stays_usable(tmp_path, monkeypatch):
    store = Store.create(tmp_path / "run", ABOUT)
    store.write("scores", 0, [{"unit": 0}])

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cryptomnesia.auditing.store.pq.write_table", full)
    with pytest.raises(StoreError, match="No space left on device; what is there is intact"):
        store.write("scores", 1, [{"unit": 1}])
    monkeypatch.undo()
    assert store.rows("scores") == [{"unit": 0}]
    store.write("scores", 1, [{"unit": 1}])
    assert store.rows("scores") == [{"unit": 0}, {"unit": 1}]
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot write to"):
        Store.create(tmp_path / "file" / "run", ABOUT)


def test_batches_hold_all_units():
    assert [batch_count(units, 8) for units in (0, 1, 8, 9)] == [0, 1, 1, 2]
