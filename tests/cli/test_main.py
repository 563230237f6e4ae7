import contextlib
import logging
import signal
import subprocess
import sys
import threading
import warnings

import pytest

from cryptomnesia import __version__, cli

VERBS = ["detect", "localize", "guard", "audit", "calibrate", "match", "find", "finetune"]


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["detect", "--help"], ["guard", "--help"]])
def test_help_and_version_load_neither_torch_nor_diffusers(arguments):
    code = (
        "import sys, cryptomnesia, cryptomnesia.cli\n"
        f"sys.argv = ['cryptomnesia', *{arguments!r}]\n"
        "try: cryptomnesia.cli.main()\n"
        "except SystemExit as ended: print(ended.code)\n"
        "print(sorted({'torch', 'diffusers', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-2:] == ["0", "[]"]


def test_the_module_can_be_run():
    for arguments, expected in (
        (["--version"], (0, f"{__version__}\n", "")),
        (["divine"], (2, "", "error: No such command 'divine'; see python -m cryptomnesia --help\n")),
    ):
        ended = subprocess.run([sys.executable, "-m", "cryptomnesia", *arguments], capture_output=True, text=True)
        assert (ended.returncode, ended.stdout, ended.stderr) == expected


def test_the_help_lists_the_verbs_first(cryptomnesia):
    code, out, err = cryptomnesia("--help")
    assert (code, err) == (0, "")
    first, others = out.split("─ Main commands ─")[1].split("─ Other commands ─")

    def names(panel):
        lines = [line.strip("│ ") for line in panel.splitlines() if line.startswith("│ ") and line[2] != " "]
        return [line.split()[0] for line in lines]

    assert names(first) == VERBS
    assert names(others) == [
        "compare",
        "demo",
        "methods",
        "report",
        "rescore",
        "bench",
        "canaries",
        "index",
        "proving-ground",
    ]


def test_every_command_says_what_it_does_in_a_sentence(cryptomnesia):
    for command in (*VERBS, "demo", "methods", "report", "rescore", "compare"):
        code, out, err = cryptomnesia(command, "--help")
        assert (code, err) == (0, "")
        sentence = next(line.strip() for line in out.splitlines()[2:] if line.strip())
        assert sentence[0].isupper()


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["detect", "bundled", "--prompt", "a", "-o", ""], "-o' / '--output"),
        (["audit", "bundled", "--prompts", "prompts.txt", "--output="], "-o' / '--output"),
        (["calibrate", "bundled", "--prompts", ""], "--prompts"),
        (["guard", "bundled", "--prompt", "a", "--calibration", ""], "--calibration"),
        (["index", "build", "", "-o", "index"], "images"),
        (["match", "images", "--index", ""], "--index"),
        (["proving-ground", "images", "scenes", ""], "folder"),
        (["report", " "], "run"),
        (["demo", "--config", ""], "--config"),
    ],
)
def test_an_empty_path_is_not_the_folder_where_the_command_was_started(cryptomnesia, arguments, name):
    code, out, err = cryptomnesia(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: Invalid value for '{name}': got an empty path; give the path of a file or folder")
    assert err.count("\n") == 1


def test_no_command_prints_the_help(cryptomnesia):
    code, out, err = cryptomnesia()
    assert (code, err) == (2, "")
    assert "Main commands" in out


def test_a_warning_of_the_library_is_one_line(cryptomnesia, monkeypatch):
    def warn():
        logging.getLogger("cryptomnesia.somewhere").warning("the model\nis %s", "odd")
        logging.getLogger("cryptomnesia").info("not shown")
        return 0

    monkeypatch.setattr(cli, "app", lambda **_: warn())
    for _ in range(2):
        assert cryptomnesia("detect") == (0, "", "warning: the model is odd\n")
    assert not logging.getLogger("cryptomnesia").handlers


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            OSError(28, "No space left on device", "out/a.png"),
            (2, "", "error: out/a.png: No space left on device; make room, or give another place\n"),
        ),
        (
            FileExistsError(17, "File exists", "out"),
            (2, "", "error: out: File exists; a file is in the way; give another name\n"),
        ),
        (MemoryError(), (2, "", "error: the memory is not enough (MemoryError); give a smaller --batch-size")),
        (
            RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
            (2, "", "error: the memory is not enough (CUDA out of memory. Tried to allocate 2 GiB); give a smaller"),
        ),
        (cli.CryptomnesiaError("got this;\n  give that"), (2, "", "error: got this; give that\n")),
        (KeyboardInterrupt(), (130, "", "error: interrupted\n")),
    ],
)
def test_errors_are_one_line(cryptomnesia, monkeypatch, error, expected):
    def fail(**_):
        raise error

    monkeypatch.setattr(cli, "app", fail)
    code, out, err = cryptomnesia("detect")
    assert (code, out) == expected[:2]
    assert err.startswith(expected[2])
    assert err.count("\n") == 1


@pytest.fixture
def state(monkeypatch, tmp_path):
    """The folder of the logs."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path / "cryptomnesia"


def failing(error):
    def fail(*_, **__):
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (RuntimeError("not\nforeseen"), "RuntimeError: not foreseen"),
        (SystemExit(0), "SystemExit: 0"),
        (SystemExit(1), "SystemExit: 1"),
        (EOFError("no data"), "EOFError: no data"),
        (RecursionError("too deep"), "RecursionError: too deep"),
        (OSError("no number"), "OSError: no number"),
        (ImportError("no module"), "ImportError: no module"),
    ],
)
def test_an_unexpected_error_is_told_from_a_flagged_image(cryptomnesia, monkeypatch, state, error, shown):
    monkeypatch.setattr("cryptomnesia.cli.listing.entries", failing(error))
    code, out, err = cryptomnesia("methods", "drift")
    (log,) = state.iterdir()
    assert (code, out) == (4, "")
    assert err == f"error: the program failed ({shown}); the traceback is in {log}; please report it\n"
    written = log.read_text()
    assert "Traceback (most recent call last):" in written
    assert "'methods', 'drift'" in written
    assert f"cryptomnesia {__version__}, Python 3." in written


def test_ctrl_c_and_a_closed_pipe_keep_their_codes_in_a_command(cryptomnesia, monkeypatch, state):
    monkeypatch.setattr("cryptomnesia.cli.listing.entries", failing(KeyboardInterrupt()))
    assert cryptomnesia("methods") == (130, "", "error: interrupted\n")
    # the standard output of this process stays
    monkeypatch.setattr(cli, "discard", lambda _: None)
    monkeypatch.setattr("cryptomnesia.cli.listing.entries", failing(BrokenPipeError(32, "Broken pipe")))
    assert cryptomnesia("methods") == (141, "", "")
    assert not state.exists()


def test_what_fails_in_a_thread_or_warns_is_one_line(cryptomnesia, monkeypatch, state):
    def work(**_):
        thread = threading.Thread(target=failing(RuntimeError("in a thread")))
        thread.start()
        thread.join()
        warnings.showwarning(UserWarning("this\nis old"), UserWarning, "file.py", 1)
        return 1

    monkeypatch.setattr(cli, "app", work)
    before = threading.excepthook, warnings.showwarning
    code, out, err = cryptomnesia("detect")
    first, second = err.splitlines()
    assert (code, out) == (4, "")
    assert first.startswith("error: the program failed (RuntimeError: in a thread); the traceback is in ")
    assert second == "warning: this is old"
    assert (threading.excepthook, warnings.showwarning) == before


def test_a_package_that_cannot_be_imported_is_one_line():
    code = (
        "import sys; sys.modules['typer'] = None; sys.argv = ['cryptomnesia', 'methods']\n"
        "from cryptomnesia.__main__ import main; main()"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (4, "")
    assert ended.stderr.startswith("error: the program cannot start (")
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        ("KeyboardInterrupt", 130, "error: interrupted\n"),
        ("ValueError('two\\nlines')", 4, "error: the program cannot start (two lines); install cryptomnesia again\n"),
    ],
)
def test_what_happens_while_the_program_starts_is_one_line(error, code, line):
    """As if Ctrl-C was pressed, or a package failed, during its first imports."""
    program = (
        "import sys\n"
        "class Stop:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'typer':\n"
        f"            raise {error}\n"
        "sys.meta_path.insert(0, Stop()); sys.argv = ['cryptomnesia', 'methods']\n"
        "from cryptomnesia.__main__ import main; main()"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (code, "", line)


def test_an_interruption_that_a_library_swallowed_is_still_one(cryptomnesia, monkeypatch):
    def swallowing(**_):
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        raise ImportError("cannot load module more than once per process")

    monkeypatch.setattr("cryptomnesia.cli.app", swallowing)
    # a shell lets programs in the background ignore it
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert cryptomnesia("methods") == (130, "", "error: interrupted\n")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_reader_who_went_away_is_no_error():
    ended = subprocess.run(
        [
            "bash",
            "-c",
            f"{sys.executable} -c 'import sys; from cryptomnesia import cli; "
            'sys.argv = ["cryptomnesia", "--help"]; '
            'cli.app = lambda **_: [print("x" * 100) for _ in range(100000)]; '
            "cli.main()' | head -1; echo ${PIPESTATUS[0]}",
        ],
        capture_output=True,
        text=True,
    )
    assert ended.stdout.splitlines()[1:] == ["141"]
    assert ended.stderr == ""
