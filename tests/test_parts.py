"""Work in parts: by one process or several, whole or stopped, with one result."""

import pytest
from filelock import FileLock

from cryptomnesia import UsageError
from cryptomnesia.parts import run
from parted import Making


def test_the_result_is_that_of_all_parts_and_progress_reaches_the_end(tmp_path):
    seen = []
    assert run(Making(tmp_path), tmp_path, progress=lambda *step: seen.append(step)) == 30
    names = {path.name for path in tmp_path.glob("*.txt")}
    assert names == {
        f"{name}-00{n}.txt" for name, parts in (("squares", 3), ("cubes", 1), ("sums", 3)) for n in range(parts)
    }
    for name, count in (("squares", 5), ("cubes", 2), ("sums", 3)):
        done = [made for what, made, every in seen if what == name and every == count]
        assert done[0] > 0
        assert done[-1] == count
        assert done == sorted(done)


@pytest.mark.parametrize(("count", "result"), [(0, 0), (1, 0), (2, 1), (5, 30)])
def test_any_number_of_units(tmp_path, count, result):
    assert run(Making(tmp_path, count), tmp_path) == result


def test_work_that_was_stopped_makes_what_is_missing(tmp_path):
    run(Making(tmp_path), tmp_path)
    for name in ("squares-001.txt", "sums-000.txt", "sums-002.txt"):
        (tmp_path / name).unlink()
    (tmp_path / "cubes-000.txt").write_text("kept")
    seen = []
    assert run(Making(tmp_path), tmp_path, progress=lambda *step: seen.append(step)) == 30
    assert (tmp_path / "cubes-000.txt").read_text() == "kept"
    # what was done counts as done from the beginning
    assert min(done for what, done, _ in seen if what == "squares") == 4
    assert not [done for what, done, _ in seen if what == "cubes"]


def test_several_processes_make_the_same(tmp_path):
    seen = []
    assert run(Making(tmp_path, 9), tmp_path, workers=2, progress=lambda *step: seen.append(step)) == 204
    assert [step for step in seen if step[0] == "squares"][-1] == ("squares", 9, 9)
    assert run(Making(tmp_path, 9), tmp_path) == 204


def test_a_process_that_dies_leaves_work_that_goes_on(tmp_path):
    with pytest.raises(UsageError, match="a process of this machine died over its part of the work"):
        run(Making(tmp_path, dies=True), tmp_path, workers=2)
    assert not (tmp_path / "squares-001.txt").exists()
    assert run(Making(tmp_path), tmp_path) == 30


def test_work_that_is_refused_leaves_no_folder(tmp_path):
    with pytest.raises(UsageError, match=r"^got too many numbers; give fewer$"):
        run(Making(tmp_path / "new", 101), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_folder_with_other_work_is_refused(tmp_path):
    run(Making(tmp_path), tmp_path)
    with pytest.raises(UsageError, match=r"holds a sum with other settings: .* differs in count"):
        run(Making(tmp_path, 6), tmp_path)


def test_one_process_alone_works_in_a_folder(tmp_path):
    with FileLock(tmp_path / ".lock"), pytest.raises(UsageError, match=r"^another process works in .*; wait until it"):
        run(Making(tmp_path), tmp_path)
    assert not list(tmp_path.glob("*.txt"))


@pytest.mark.parametrize(
    ("given", "message"), [({"engine": "spark"}, "got the engine spark"), ({"workers": 0}, "got 0 wor")]
)
def test_engines_and_workers_that_do_not_exist_are_refused(tmp_path, given, message):
    with pytest.raises(UsageError, match=message):
        run(Making(tmp_path / "new"), tmp_path / "new", **given)
    assert not (tmp_path / "new").exists()
