"""Indexes that the processes of a Ray cluster build are those that one process builds."""

import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cryptomnesia import ImageIndex, UsageError
from cryptomnesia.decoding import Readings
from cryptomnesia.matching import Changes, Tiles, describing
from cryptomnesia.matching.describing import Describer, Unit
from cryptomnesia.matching.shards import finished, read_rows, write_json
from cryptomnesia.matching.sources import Item, Packed
from picture_files import encoded, picture, write_tar

ray = pytest.importorskip("ray", reason="ray is not installed")


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """A cluster of this machine with room for two processes."""
    # a cluster of its own also where another one runs
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    # processes of the cluster cannot import it
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    ray.shutdown()


@dataclass(frozen=True)
class Marked(Tiles):
    """Tiles that write which process computes them into a folder, and kill the first one at its second portion."""

    marks: str = ""
    dies: bool = False

    def describe(self, pictures):
        mark, died = Path(self.marks, f"{os.getpid()}"), Path(self.marks, "died")
        if self.dies and mark.exists() and not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        mark.touch()
        return super().describe(pictures)


def of_table(path, seeds, *, captions=True):
    columns = {"image": [encoded(picture(seed)) for seed in seeds]}
    if captions:
        columns["text"] = [f"row {seed}" for seed in seeds]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def of_tar(path, seeds):
    members = {}
    for seed in seeds:
        members[f"{seed}.jpg"] = encoded(picture(seed), "JPEG", quality=95)
        members[f"{seed}.txt"] = f"member {seed}".encode()
    write_tar(path, {**members, "notes.md": b"# notes"})


@pytest.fixture
def images(tmp_path):
    """Pictures in files, two tar shards, a table, captions, and files that are left out."""
    folder = tmp_path / "images"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    for number in range(12):
        # every third has two readings
        options = {"exif": exif} if number % 3 == 0 else {}
        (folder / f"{number:02}.jpg").write_bytes(encoded(picture(number), "JPEG", quality=95, **options))
    (folder / "03.txt").write_text("a caption beside it")
    (folder / "broken.jpg").write_bytes(b"no picture")
    (folder / "notes.md").write_text("# notes")
    of_tar(folder / "a.tar", range(20, 30))
    of_tar(folder / "b.tar", range(30, 33))
    (folder / "cut.tar").write_bytes((folder / "a.tar").read_bytes()[:9000])
    of_table(folder / "part.parquet", range(40, 50))
    return folder


def on_ray(images, folder, *, descriptor=None, shard=4, workers=1, **settings):
    return ImageIndex.build(images, folder, descriptor, shard=shard, engine="ray", workers=workers, **settings)


def content(index):
    """Everything that an index knows, by name and reading; the order of its shards does not matter."""
    held = {}
    for names in finished(index.folder):
        values = np.load(names.with_suffix(".npy"))
        for row, described in zip(read_rows(names), values, strict=True):
            assert (row.name, row.reading) not in held
            held[row.name, row.reading] = (row, described.tobytes())
    return held, index.skipped


def test_the_index_is_the_one_that_one_process_builds(images, tmp_path):
    seen = []
    here = ImageIndex.build(images, tmp_path / "here", shard=4)
    there = on_ray(images, tmp_path / "there", workers=2, progress=lambda done, total: seen.append((done, total)))
    assert content(there) == content(here)
    assert there.changes == here.changes == Changes(added=len(here))
    assert len(here.paths) > len(here)
    assert {"broken.jpg", "notes.md", "cut.tar", "a.tar/notes.md"} < set(there.skipped)
    assert there.captioned == here.captioned > 20
    assert len(seen) > 3
    assert seen[-1][0] == seen[-1][1]
    # a table of more readings than a shard has several
    assert max(len(read_rows(names)) for names in finished(there.folder)) <= 5
    assert here.search([picture(45)]).distances.equal(there.search([picture(45)]).distances)


def test_only_what_has_changed_is_described(images, tmp_path):
    marks = tmp_path / "marks"
    marks.mkdir()
    descriptor = Marked(marks=str(marks))
    on_ray(images, tmp_path / "index", descriptor=descriptor)
    assert list(marks.iterdir())
    for path in marks.iterdir():
        path.unlink()
    index = on_ray(images, tmp_path / "index", descriptor=descriptor)
    assert index.changes == Changes(unchanged=len(index))
    assert not list(marks.iterdir())
    before = len(index)
    (images / "01.jpg").write_bytes(encoded(picture(101), "JPEG"))
    (images / "02.jpg").unlink()
    (images / "04.txt").write_text("a new caption")
    os.utime(images / "05.jpg")
    of_tar(images / "b.tar", [30, 31, 39])
    os.utime(images / "part.parquet")
    index = on_ray(images, tmp_path / "index", descriptor=descriptor)
    # the cut shard is read again by nobody
    assert index.changes == Changes(added=1, replaced=1, removed=2, unchanged=before - 3)
    assert content(index) == content(ImageIndex.build(images, tmp_path / "here", descriptor))
    # each engine goes on where the other one was
    assert ImageIndex.build(images, tmp_path / "index", descriptor).changes == Changes(unchanged=len(index))
    assert on_ray(images, tmp_path / "here", descriptor=descriptor).changes == Changes(unchanged=len(index))


def test_a_process_that_is_killed_takes_nothing_along(images, tmp_path):
    marks = tmp_path / "marks"
    marks.mkdir()
    index = on_ray(images, tmp_path / "index", descriptor=Marked(marks=str(marks), dies=True), workers=2)
    assert (marks / "died").exists()
    assert content(index) == content(ImageIndex.build(images, tmp_path / "here"))


def test_a_build_that_was_stopped_goes_on(images, tmp_path):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        on_ray(images, tmp_path / "index", progress=stop)
    with pytest.raises(UsageError, match="is not finished"):
        ImageIndex(tmp_path / "index")
    assert list(finished(tmp_path / "index"))
    index = on_ray(images, tmp_path / "index")
    assert index.changes.unchanged > 0
    assert content(index) == content(ImageIndex.build(images, tmp_path / "here"))


def test_pictures_from_python_and_two_of_one_name(tmp_path):
    given = [("one", picture(1)), ("two", picture(2), "a caption"), ("one", picture(3)), *map(picture, range(10, 20))]
    here, there = ImageIndex.build(given, tmp_path / "here"), on_ray(given, tmp_path / "there", shard=2)
    assert content(here) == content(there)
    assert there.skipped == {"one (again)": "a second picture of the same name"}


def test_a_name_that_two_units_have_is_one_picture(tmp_path):
    of_table(tmp_path / "images" / "a.parquet", [1, 2, 3])
    (tmp_path / "images" / "a.parquet#1").write_bytes(encoded(picture(9)))
    for _ in range(2):
        index = on_ray(tmp_path / "images", tmp_path / "index", shard=1)
        assert sorted(index.paths) == ["a.parquet#0", "a.parquet#1", "a.parquet#2"]
        assert index.skipped == {"a.parquet#1 (again)": "a second picture of the same name"}
    assert index.changes == Changes(unchanged=3)


def describer(folder, **settings):
    given = {"descriptor": Tiles(), "readings": Readings(), "shard": 4, "threads": 1, "build": "00000-7"}
    return Describer(folder, **{**given, **settings})


def test_a_machine_that_sees_no_index_or_that_of_another_build_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(describing, "PATIENCE", 0)
    unit = Unit(3, [Item("a", encoded(picture(1)))], {})
    for about in (None, {"complete": True}, {"build": "00000-8"}):
        (tmp_path / "index").mkdir(exist_ok=True)
        if about is not None:
            write_json(tmp_path / "index" / "index.json", about)
        with pytest.raises(
            UsageError, match=r"of the cluster does not see the build of the index in .*; give a folder"
        ):
            describer(tmp_path / "index")(unit)
    assert not list(finished(tmp_path / "index"))
    write_json(tmp_path / "index" / "index.json", {"build": "00000-7"})
    for _ in range(2):
        assert describer(tmp_path / "index")(unit).shards == {"00000-7-000003-000": 1}
    assert [names.stem for names in finished(tmp_path / "index")] == ["00000-7-000003-000"]
    assert repr(unit) == "unit 3, from a on"


@dataclass(frozen=True)
class Blind(Tiles):
    """Tiles in whose processes no file of the name `hidden` can be read."""

    hidden: str = ""

    def __setstate__(self, state):
        self.__dict__.update(state)
        before = Path.open

        def opened(path, *args, **options):
            if path.name == self.hidden:
                raise FileNotFoundError(2, "No such file or directory", str(path))
            return before(path, *args, **options)

        Path.open = opened


def test_pictures_that_a_machine_does_not_see_are_an_error(images, tmp_path):
    message = r"a machine of the cluster cannot read .*/07\.jpg, which this machine can; give pictures that all"
    with pytest.raises(UsageError, match=message):
        on_ray(images, tmp_path / "index", descriptor=Blind(hidden="07.jpg"))
    with pytest.raises(UsageError, match="is not finished"):
        ImageIndex(tmp_path / "index")


def test_a_process_says_which_files_it_does_not_see(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "here.png").write_bytes(encoded(picture(1)))
    table = pa.table({"image": [{"bytes": None, "path": "here.png"}, {"bytes": None, "path": "gone.png"}]})
    pq.write_table(table, folder / "a.parquet")
    write_json(tmp_path / "index.json", {"build": "00000-7"})
    names = {"a.parquet": False, "gone.parquet": False, "gone.tar": True}
    parts = [Packed(name, folder / name, 1, folder, is_tar) for name, is_tar in names.items()]
    found = describer(tmp_path)(Unit(0, [*parts, Item("gone.jpg", folder / "gone.jpg")], {}))
    assert {path.name for path in found.unseen} == {"gone.parquet", "gone.tar", "gone.png", "gone.jpg"}
    assert found.new == {"a.parquet#0"}


def test_shards_that_no_process_of_the_build_wrote_do_not_count(images, tmp_path, monkeypatch):
    """A process that outlived its driver finishes its unit while the next build is under way."""
    late = []

    def write_late(done, total):
        if late:
            return
        late.append("00000-1-000000-000")
        about = tmp_path / "index" / "index.json"
        held = about.read_text()
        write_json(about, {"build": "00000-1"})
        describer(tmp_path / "index", build="00000-1")(Unit(0, [Item("00.jpg", encoded(picture(77)))], {}))
        about.write_text(held)

    index = on_ray(images, tmp_path / "index", progress=write_late)
    assert late[0] not in {names.stem for names in finished(tmp_path / "index")}
    assert content(index) == content(ImageIndex.build(images, tmp_path / "here"))


def test_the_command_takes_an_engine(images, tmp_path, cryptomnesia):
    command = ["index", "build", images, "-o", tmp_path / "index"]
    code, out, _ = cryptomnesia(*command, "--engine", "ray", "--workers", 1)
    assert code == 0
    assert " pictures by tiles" in out
    code, _, err = cryptomnesia(*command, "--engine", "spark")
    assert (code, err.count("\n")) == (2, 1)
    assert "got the engine spark" in err
    with pytest.raises(UsageError, match="got 0 workers"):
        ImageIndex.build(images, tmp_path / "index", workers=0)
