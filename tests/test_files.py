import json
import os
import stat
import subprocess
import sys
from threading import Barrier, Thread

import pytest
import torch
from safetensors.torch import save_file

from cryptomnesia import UsageError
from cryptomnesia.files import claim, load_checked, prompts_digest, replacing, save_checked, write_whole

ABOUT = {"number": 1, "words": ["a", "b"]}
TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(3)}


@pytest.fixture(params=[0o022, 0o027, 0o077, 0o002])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_files_have_the_permissions_that_the_umask_gives(tmp_path, umask):
    write_whole(tmp_path / "text", "a")
    save_checked(tmp_path / "checked", "a kind", 1, ABOUT, TENSORS)
    with replacing(tmp_path / "made anew") as unfinished:
        unfinished.unlink()
        unfinished.touch(mode=0o600)
    for name in ("text", "checked", "made anew"):
        assert mode(tmp_path / name) == 0o666 & ~umask


def test_an_error_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "file"
    write_whole(path, "old")
    with pytest.raises(ZeroDivisionError), replacing(path) as unfinished:
        unfinished.write_text(f"half {1 / 0}")
    assert path.read_text() == "old"
    assert [found.name for found in tmp_path.iterdir()] == ["file"]
    write_whole(path, b"new")
    assert path.read_bytes() == b"new"


def test_the_file_is_never_half_written(tmp_path):
    path = tmp_path / "file"
    write_whole(path, "old")
    with replacing(path) as unfinished:
        unfinished.write_text("ha")
        assert path.read_text() == "old"
        unfinished.write_text("half and half")
    assert path.read_text() == "half and half"


def test_two_threads_may_write_one_file(tmp_path):
    path = tmp_path / "file"
    together, errors = Barrier(8), []

    def write(number):
        try:
            with replacing(path) as unfinished:
                together.wait()
                unfinished.write_text(str(number) * 1000)
                together.wait()
        except OSError as error:
            errors.append(error)

    threads = [Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    content = path.read_text()
    assert content == content[0] * 1000
    assert [found.name for found in tmp_path.iterdir()] == ["file"]


def test_a_checked_file_gives_back_what_was_saved(tmp_path):
    save_checked(tmp_path / "file", "a kind", 3, ABOUT, {**TENSORS, "c": TENSORS["a"].T})
    about, tensors = load_checked(tmp_path / "file", "a kind", 3)
    assert {name: about[name] for name in ABOUT} == ABOUT
    assert about["kind"] == "a kind"
    assert tensors.keys() == {"a", "b", "c"}
    assert torch.equal(tensors["a"], TENSORS["a"])
    assert torch.equal(tensors["c"], TENSORS["a"].T)


def test_messages_are_whole_for_kinds_that_no_command_makes(tmp_path):
    path = tmp_path / "file"
    with pytest.raises(UsageError, match=r"^no list file .*file; make it again$"):
        load_checked(path, "list", 1)
    path.write_text("something else")
    with pytest.raises(UsageError, match=r"is not a list \(.*\); make it again$"):
        load_checked(path, "list", 1)
    save_checked(path, "table", 1, {}, TENSORS)
    with pytest.raises(UsageError, match=r"is a table, not a list; make it again$"):
        load_checked(path, "list", 1)
    with pytest.raises(UsageError, match="has table format 1, this version reads 2; make it again"):
        load_checked(path, "table", 2)
    with pytest.raises(UsageError, match=r"not a calibration; make one with `cryptomnesia calibrate`$"):
        load_checked(path, "calibration", 2)


def test_a_folder_is_no_place_for_a_file(tmp_path):
    with pytest.raises(UsageError, match="is a folder; give the name of a file"):
        save_checked(tmp_path, "a kind", 1, {}, TENSORS)
    with pytest.raises(UsageError, match=r"cannot write .*; give another place"):
        save_checked(tmp_path / "missing" / "file", "a kind", 1, {}, TENSORS)


def test_the_digest_of_prompts_depends_on_their_order():
    assert prompts_digest(["a", "b"]) != prompts_digest(["b", "a"])
    assert prompts_digest(("a", "b")) == prompts_digest(["a", "b"])


def test_a_link_stays_and_its_file_is_replaced(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder" / "file")
    write_whole(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "folder" / "file").read_text() == "new"


def test_a_device_or_pipe_stays_what_it_is(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    read = []
    reader = Thread(target=lambda: read.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    write_whole(tmp_path / "pipe", "through")
    reader.join()
    assert read == [b"through"]
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


def test_a_failed_write_says_of_which_file(tmp_path):
    (tmp_path / "file").write_text("a")
    for path, error in ((tmp_path / "full", OSError(28, "No space left on device")), (tmp_path / "file" / "x", None)):
        with pytest.raises(OSError, match=r"No space left on device|Not a directory") as failed, replacing(path):
            raise error
        assert failed.value.filename == str(path)


def test_a_process_that_is_killed_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    write_whole(path, "old")
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom cryptomnesia.files import replacing\n"
        "with replacing(Path(sys.argv[1])) as unfinished:\n"
        "    unfinished.write_text('half')\n    os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)]).returncode == -9
    assert path.read_text() == "old"


@pytest.mark.parametrize("header", ["[]", '"a"', "3", "{}", "[" * 100_000, '{"content": 1, "kind": [], "format": {}}'])
def test_any_header_is_refused_in_one_line(tmp_path, header):
    save_file(TENSORS, tmp_path / "odd", metadata={"about": header})
    with pytest.raises(UsageError) as refused:
        load_checked(tmp_path / "odd", "a kind", 1)
    assert "\n" not in str(refused.value)


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(UsageError, match=f"^{tmp_path} is a folder; give the file of a calibration$"):
        load_checked(tmp_path, "calibration", 1)


def test_settings_with_other_white_space_are_the_same_settings(tmp_path):
    path, settings = tmp_path / "run" / "settings.json", {"steps": 3, "prompts": ["a red circle"]}
    claim(path, settings, "another run")
    path.write_text(json.dumps(settings))
    claim(path, settings, "another run")
    with pytest.raises(UsageError, match=r"holds another run: .*settings.json differs in steps; go on"):
        claim(path, {**settings, "steps": 4}, "another run")
