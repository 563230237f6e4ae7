import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from cryptomnesia import Calibration, ImageIndex, UsageError, audit, places
from cryptomnesia.auditing import store as storing
from cryptomnesia.auditing.outcome import outcome
from cryptomnesia.auditing.store import Store, StoreError, _read
from cryptomnesia.errors import UnreachableError
from cryptomnesia.files import replacing, write_whole
from cryptomnesia.matching import describing
from cryptomnesia.matching import index as index_of
from cryptomnesia.places import exists, local, locked, names, place
from cryptomnesia.prompts import read_prompts
from cryptomnesia.settings import AuditSettings, BuildSettings
from object_store import VARIABLES, ObjectStore
from picture_files import picture
from tiny_audit import settings

ABOUT = {"model": "tiny", "steps": 3}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A running object store; its address and keys are in the environment."""
    found = ObjectStore(tmp_path_factory.mktemp("s3"))
    found.start()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**VARIABLES, "AWS_ENDPOINT_URL": found.url}.items():
            patch.setenv(name, value)
        patch.setenv(places.CACHE, str(tmp_path_factory.mktemp("cache")))
        yield found
    found.kill()


def test_a_path_stays_a_path(tmp_path):
    assert place(str(tmp_path)) == place(tmp_path) == place(f"file://{tmp_path}") == tmp_path
    assert local(tmp_path / "missing") == tmp_path / "missing"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("foo://bucket/run", r"got foo://bucket/run \(.*foo.*\); give a path, or a URL that fsspec knows"),
        ("gs://bucket/run", r"gs://bucket/run needs gcsfs; pip install gcsfs"),
        ("s3://", r"got s3://, which names no folder; give s3://BUCKET/FOLDER"),
        (
            Path("s3://bucket/run"),
            r"got the Path s3:/bucket/run, in which a URL has lost a slash; give the URL as a text",
        ),
        ("https://me:secret@host/p.txt", r"^got a URL with a name or password, which would be written into runs; give"),
        ("simplecache::s3://bucket/run", r"got a URL with a chain"),
    ],
)
def test_urls_that_lead_nowhere_are_refused(url, message):
    with pytest.raises(UsageError, match=message):
        place(url)


def test_settings_that_are_read_from_disk_refuse_a_url():
    with pytest.raises(UsageError, match=r"got training_images = 's3://b/x', expected a path on this machine, not"):
        AuditSettings.resolve({"training_images": "s3://b/x"}, environment={})
    with pytest.raises(UsageError, match="expected a path on this machine"):
        BuildSettings.resolve({"images": ["s3://b/x"]}, environment={})
    found = AuditSettings.resolve({"index": "s3://b/x"}, environment={})
    assert found.model_dump(mode="json")["index"] == "s3://b/x"


def test_a_command_that_writes_to_disk_refuses_a_url(cryptomnesia):
    code, _, err = cryptomnesia("detect", "bundled", "--prompt", "a", "-o", "s3://bucket/x")
    assert code == 2
    assert "expected a path on this machine, not the URL s3://bucket/x; give a path" in err


def test_a_file_in_a_store_appears_when_it_is_complete(server):
    file = place("s3://bucket/folder/file.txt")
    with replacing(file) as unfinished:
        unfinished.write_text("whole")
        assert not file.exists()
    assert file.read_text() == "whole"
    with pytest.raises(ZeroDivisionError), replacing(file) as unfinished:
        unfinished.write_text(f"half {1 / 0}")
    assert file.read_text() == "whole"
    assert list(names(file.parent, ".txt")) == ["file.txt"]
    assert names(place("s3://bucket/missing"), ".txt") == {}


def test_a_copy_is_made_once_for_every_version(server, monkeypatch):
    file = place("s3://bucket/copied.txt")
    write_whole(file, "first")
    copy = local(file)
    assert copy.read_text() == "first"
    before = copy.stat().st_mtime_ns
    assert local(file).stat().st_mtime_ns == before
    write_whole(file, "second, longer")
    assert local(file).read_text() == "second, longer"
    assert not copy.exists()
    with pytest.raises(FileNotFoundError):
        local(place("s3://bucket/none.txt"))


def test_a_store_that_can_be_reached_again_is_waited_for(server):
    file = place("s3://bucket/late.txt")
    server.kill()
    late = threading.Timer(2, server.start)
    late.start()
    began = time.monotonic()
    write_whole(file, "late")
    late.join()
    assert time.monotonic() - began >= 1
    assert file.read_text() == "late"


def test_a_store_that_stays_away_is_an_error_of_one_line(server, monkeypatch):
    monkeypatch.setattr(places, "_WAITS", (0.01,))
    store = Store.create(place("s3://bucket/away"), ABOUT)
    store.write("scores", 1, [{"unit": 1}])
    server.kill()
    try:
        with pytest.raises(UnreachableError, match=r"^cannot reach s3://bucket/away/run.json \(.*\); check the"):
            store.write("scores", 0, [{"unit": 1}])
        # neither damaged nor missing
        with pytest.raises(UnreachableError, match=r"cannot reach s3://bucket/away/scores/00001.parquet \(.*\); check"):
            _read(store.path("scores", 1))
        with pytest.raises(UnreachableError, match=r"cannot reach s3://bucket/away/run.json"):
            exists(store.folder / "run.json")
    finally:
        server.start()


def test_a_bucket_that_does_not_exist_is_named(server):
    with pytest.raises(StoreError, match=r"cannot write to s3://none/run: The specified bucket does not exist"):
        Store.create(place("s3://none/run"), ABOUT)


def test_processes_of_a_machine_share_the_lock_of_a_place_in_a_store(server):
    where = place("s3://bucket/lock")
    with locked(where), pytest.raises(TimeoutError), locked(where, wait=False):
        pass
    with locked(where, wait=False):
        pass


def test_a_run_in_a_store_is_the_run_on_disk(server, audit_folder, audited, cryptomnesia, tmp_path):
    arguments = settings(audit_folder, images_per_prompt=2)
    write_whole(place("s3://bucket/prompts.txt"), (audit_folder / "prompts.txt").read_text())
    assert read_prompts("s3://bucket/prompts.txt") == read_prompts(audit_folder / "prompts.txt")
    run = audit(**arguments, output="s3://bucket/run")
    for stage in ("references", "images", "scores"):
        assert str(run.rows(stage)) == str(audited.rows(stage))
    assert outcome(run).to_json() == outcome(audited).to_json()
    assert audit(**arguments, output="s3://bucket/run").done("images") == audited.done("images")
    code, _, err = cryptomnesia("report", "s3://bucket/run", "-o", "s3://bucket/report.html", "--embed-images")
    assert (code, err) == (0, "")
    assert "data:image/" in place("s3://bucket/report.html").read_text()
    calibration = Calibration.load("s3://bucket/run/calibration.safetensors")
    calibration.save("s3://bucket/copy.safetensors")
    given = {name: value for name, value in arguments.items() if name != "references"}
    again = audit(**given, calibration="s3://bucket/copy.safetensors", output=tmp_path / "run")
    assert str(again.rows("images")) == str(audited.rows("images"))


def test_a_damaged_batch_in_a_store_is_named(server):
    store = Store.create(place("s3://bucket/damaged"), ABOUT)
    store.write("scores", 0, [{"unit": 1}])
    write_whole(store.path("scores", 0), b"no table")
    with pytest.raises(UsageError, match=r"s3://bucket/damaged/scores/00000.parquet is damaged"):
        store.rows("scores")


def test_of_two_machines_that_begin_runs_at_the_same_moment_one_is_refused(server, monkeypatch):
    """Locks of a store are those of one machine, so another one is played by a thread without locks."""
    folder, other = place("s3://bucket/twice"), {"model": "tiny", "steps": 4}
    monkeypatch.setattr(storing, "locked", lambda *_, **__: nullcontext())
    both_look = threading.Barrier(2)

    def write(path, content):
        # both have found the folder empty, and one writes when the other one has
        time.sleep(0.5 * both_look.wait(60))
        write_whole(path, content)

    with monkeypatch.context() as patch, ThreadPoolExecutor(2) as machines:
        patch.setattr(storing, "write_whole", write)
        runs = [machines.submit(Store.create, folder, about) for about in (ABOUT, other)]
        errors = [run.exception() for run in runs]
    assert sorted(error is None for error in errors) == [False, True]
    assert any("holds another run: steps is" in str(error) for error in errors)
    # the same run is one run, whoever begins it
    with ThreadPoolExecutor(2) as machines:
        both = [machines.submit(Store.create, place("s3://bucket/once"), ABOUT).result() for _ in range(2)]
    for number, run in enumerate(both):
        run.write("images", 0, [{"unit": number}])
    assert both[0].rows("images") == [{"unit": 1}]


def test_a_run_that_another_machine_has_replaced_is_not_written_to(server):
    folder = place("s3://bucket/replaced")
    run = Store.create(folder, ABOUT)
    run.write("images", 0, [{"unit": 0}])
    held = json.loads((folder / "run.json").read_text())
    write_whole(folder / "run.json", json.dumps({**held, "run": "2", "about": {"model": "tiny", "steps": 4}}))
    with pytest.raises(UsageError, match=r"another machine has begun another run in s3://bucket/replaced: steps is 3"):
        run.write("images", 1, [{"unit": 1}])
    assert run.missing("images", 2) == [1]
    # one with the same settings is the same run
    write_whole(folder / "run.json", json.dumps({**held, "run": "2"}))
    run.write("images", 1, [{"unit": 1}])
    assert run.missing("images", 2) == []


def test_two_machines_that_build_an_index_at_the_same_moment_leave_one(server, tmp_path, monkeypatch):
    """The one that began first stops, and the other one takes over what it has written."""
    (tmp_path / "images").mkdir()
    for number in range(12):
        picture(number).save(tmp_path / "images" / f"{number:02}.png")
    monkeypatch.setattr(index_of, "locked", lambda *_, **__: nullcontext())
    begun, going_on = threading.Event(), threading.Event()

    def wait(done, total):
        if done >= 8:
            begun.set()
            going_on.wait(60)

    def first():
        return ImageIndex.build(tmp_path / "images", "s3://bucket/both", shard=4, workers=1, progress=wait)

    monkeypatch.setattr(describing, "_PORTION", 4)
    with ThreadPoolExecutor(1) as machine:
        stopped = machine.submit(first)
        assert begun.wait(60)
        # of a picture that the other machine sees otherwise, each has described its own
        picture(99).save(tmp_path / "images" / "01.png")
        built = ImageIndex.build(tmp_path / "images", "s3://bucket/both", shard=3)
        going_on.set()
        with pytest.raises(UsageError, match=r"another machine has begun to build the index s3://bucket/both; wait"):
            stopped.result()
    assert sorted(built.paths) == [f"{number:02}.png" for number in range(12)]
    opened = ImageIndex("s3://bucket/both")
    assert sorted(opened.paths) == sorted(built.paths)
    nearest = opened.search([picture(number) for number in (99, *range(2, 12))])
    assert [opened.paths[row[0]] for row in nearest.positions.tolist()] == [f"{n:02}.png" for n in range(1, 12)]
    assert nearest.distances.max() < 0.01


def test_no_listing_that_a_package_remembers_is_believed(monkeypatch):
    """Some packages ignore `use_listings_cache`; here that of the protocol `memory` does."""
    listings, look = {}, MemoryFileSystem.ls

    def remembered(system, path, detail=True, **kwargs):
        found = listings.setdefault(path, look(system, path, detail=True, **kwargs))
        return found if detail else [one["name"] for one in found]

    monkeypatch.setattr(MemoryFileSystem, "ls", remembered)
    monkeypatch.setattr(MemoryFileSystem, "invalidate_cache", lambda system, path=None: listings.clear())
    folder = place("memory://bucket/remembered")
    write_whole(folder / "1.json", "{}")
    assert {*names(folder, ".json")} == {"1.json"}
    # another machine writes, of which this one's file system does not know
    MemoryFileSystem().pipe_file("/bucket/remembered/2.json", b"{}")
    assert [path.name for path in folder.iterdir()] == ["1.json"]
    assert {*names(folder, ".json")} == {"1.json", "2.json"}
    assert exists(folder / "2.json")


def test_an_index_in_a_store_is_searched_as_one_on_disk(server, tmp_path):
    (tmp_path / "images").mkdir()
    for number in range(12):
        picture(number).save(tmp_path / "images" / f"{number}.png")
    here = ImageIndex.build(tmp_path / "images", tmp_path / "index", shard=5)
    there = ImageIndex.build(tmp_path / "images", "s3://bucket/index", shard=5)
    assert there.paths == here.paths
    queries = [picture(3), picture(7)]
    assert there.search(queries).positions.tolist() == here.search(queries).positions.tolist()
    (tmp_path / "images" / "3.png").unlink()
    picture(99).save(tmp_path / "images" / "99.png")
    changed = ImageIndex.build(tmp_path / "images", "s3://bucket/index", shard=5)
    assert changed.changes is not None
    assert (changed.changes.added, changed.changes.removed) == (1, 1)
    assert sorted(ImageIndex("s3://bucket/index").paths) == sorted([*(p for p in here.paths if p != "3.png"), "99.png"])
