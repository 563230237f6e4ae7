import errno
import os
import stat
import tempfile

import pytest

from cryptomnesia.cli.endings import ending_of, without_secrets, write_log


def raised(error):
    try:
        raise error
    except type(error) as caught:
        return caught


def test_a_log_says_what_is_needed_and_keeps_secrets(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv("HF_TOKEN", "abcdefgh-secret")
    monkeypatch.setattr(
        "sys.argv", ["cryptomnesia", "detect", *"--token=letmein --password sesame hf_abcdefghijk".split()]
    )
    log = write_log(raised(ValueError("abcdefgh-secret at https://me:word@host/x")))
    text = log.read_text(encoding="utf-8")
    assert log.parent == tmp_path / "cryptomnesia"
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    assert "'--token=…'" in text
    assert "https://…@host/x" in text
    for secret in ("abcdefgh-secret", "letmein", "sesame", "hf_abc", "me:word"):
        assert secret not in text


def test_a_log_goes_elsewhere_where_its_folder_cannot_be_made(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    assert write_log(raised(KeyError("a"))).parent == tmp_path / "temporary"
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file"))
    line, code = ending_of(raised(KeyError("a")))
    assert code == 4
    assert line.startswith("the program failed (KeyError: 'a'); it failed at ")
    assert line.endswith("test_endings.py:13, and no log can be written; please report it")


@pytest.mark.parametrize(
    ("number", "fix"),
    [
        (errno.ENOSPC, "make room, or give another place"),
        (errno.EISDIR, "a folder is where a file is needed; give the name of a file"),
        (errno.ENOTDIR, "a file is where a folder is needed; give another path"),
        (errno.EACCES, "give another place, or change its permissions"),
        (errno.ECONNRESET, "give another place"),
    ],
)
def test_errors_of_the_system_say_what_to_do(number, fix):
    error = OSError(number, os.strerror(number), "out/a.png")
    assert ending_of(error) == (f"out/a.png: {os.strerror(number)}; {fix}", 2)


def test_an_error_whose_text_fails_is_shown_by_its_name(monkeypatch, tmp_path):
    class Odd(Exception):
        def __str__(self):
            raise ValueError

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert ending_of(Odd()).line.startswith("the program failed (Odd); the traceback is in ")


def test_a_long_error_is_cut(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert ending_of(ValueError("a" * 10_000)).line.count("a") < 400


def test_ordinary_words_are_no_secrets():
    text = "detect bundled --prompt 'a tokenizer of stars' --calibration /home/me@work/c.safetensors"
    assert without_secrets(text) == text
