import threading
import time
from pathlib import Path

import pytest

from cryptomnesia import Calibration, ImageIndex, UsageError, audit, places
from cryptomnesia.auditing.outcome import outcome
from cryptomnesia.auditing.store import Store, StoreError, _read
from cryptomnesia.errors import UnreachableError
from cryptomnesia.files import replacing, write_whole
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
        with pytest.raises(
            UnreachableError, match=r"^cannot reach s3://bucket/away/scores/00000.parquet \(.*\); check the"
        ):
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
