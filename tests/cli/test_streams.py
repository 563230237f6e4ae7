import io
import os
import subprocess
import sys

import pytest

from cryptomnesia.cli.streams import prepare_streams, say


def shell(command, **environment):
    """Exit code, standard output and standard error of a command of the shell; `$RUN` is the command line."""
    run = f"{sys.executable} -m cryptomnesia"
    ended = subprocess.run(
        ["bash", "-c", command.replace("$RUN", run)],
        capture_output=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
    )
    return ended.returncode, ended.stdout, ended.stderr


@pytest.mark.parametrize(
    "environment",
    [{"PYTHONIOENCODING": "cp1252"}, {"PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}],
)
def test_letters_that_a_code_page_lacks_end_no_command(audited, environment):
    code, out, err = shell(f"$RUN report {audited.folder}", **environment)
    assert (code, err) == (0, b"")
    assert "suspected at p <= 0.5" in out.decode("ascii")


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "cp437", "cp932", "utf-8"])
def test_every_text_can_be_written_in_every_encoding(monkeypatch, encoding):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    prepare_streams()
    print("p ≤ 0.01 × 2 … 中 \ud800")
    say("error: two\nlines → one")
    sys.stdout.flush()
    out, err = (stream.buffer.getvalue().decode(encoding) for stream in (sys.stdout, sys.stderr))
    for letter, plain in (("≤", "<="), ("×", "x"), ("…", "..."), ("中", "\\u4e2d"), ("→", "->")):
        out, err = out.replace(plain, letter), err.replace(plain, letter)
    assert out == "p ≤ 0.01 × 2 … 中 \\ud800\n"
    assert err == "error: two lines → one\n"


def test_a_message_with_letters_of_another_alphabet_is_one_line():
    code, out, err = shell("$RUN divine中", PYTHONIOENCODING="cp1252")
    assert (code, out, err.count(b"\n")) == (2, b"", 1)
    assert err.startswith(b"error: No such command 'divine\\u4e2d'")


def test_a_full_disk_behind_standard_output_is_one_line():
    code, _, err = shell("$RUN --version > /dev/full")
    assert (code, err) == (2, b"error: No space left on device; make room, or give another place\n")


@pytest.mark.parametrize("closed", [">&-", ">&- 2>&- <&-", "2>/dev/full"])
def test_closed_streams_change_no_exit_code(closed):
    assert shell(f"$RUN --version {closed}")[0] == 0
    assert shell(f"$RUN divine {closed}")[0] == 2


def test_what_is_printed_gets_into_no_file_where_standard_output_is_closed(audited, tmp_path):
    code, _, err = shell(f"$RUN report {audited.folder} --format json -o {tmp_path}/made.json >&-")
    assert (code, err) == (0, b"")
    assert (tmp_path / "made.json").read_bytes().endswith(b"}")
