"""Command lines made of the options that the commands have, with values that do not fit."""

import io
import os
import shutil
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

import typer
from hypothesis import strategies as st

from cryptomnesia import cli

LONG = {
    ("proving-ground", "train"): ["--processes", "0"],
    ("proving-ground", "verify"): ["--bundle", "nosuch"],
    ("proving-ground", "show"): ["--bundle", "nosuch"],
    ("proving-ground", "images"): ["--others", "-1"],
    ("demo",): ["--output", "/dev/null"],
    ("canaries", "make"): ["--size", "8", "--each", "1"],
}
"""Commands that work for minutes, with the option that stops them."""

NUMBERS = [*"0 -1 1 2 7.5 1000 1e308 -1e308 nan inf -inf 1_0 x 0x10 ²".split(), "", "9" * 30]
TEXTS = [*"auto none x -- - ä drift collapse {} [1 %s [red]x[/red] org/name".split(), "", " ", "\ud800", "a" * 300]


class Wrong(Exception):
    """Something that must not be, although nothing raised an error."""


def _commands(command, path=()):
    """(path, command) of every command that does something."""
    if hasattr(command, "commands"):
        for name, inner in sorted(command.commands.items()):
            yield from _commands(inner, (*path, name))
    else:
        yield path, command


FITTING = {
    "run": "run",
    "before": "run",
    "after": "run",
    "index": "index",
    "images": "pictures",
    "prompts": "prompts.txt",
}
"""Name of an option or argument → a file or folder of the samples that fits."""

INSIDE = """. prompts.txt references.txt pictures pictures/0.png run index run/run.json run/run.json/x run/images
tiny/vae
run/calibration.safetensors"""
PATHS = [f"samples/{name}" for name in INSIDE.split()]
PATHS += ["nosuch", "nosuch/a.txt", "/proc/x/y", "/dev/null", "a" * 300, "out", "x.csv", "."]
"""Paths of files and folders that are there or not."""


@st.composite
def command_lines(draw):
    """The arguments of a command line."""
    commands = list(_commands(typer.main.get_command(cli.app)))
    path, command = draw(st.sampled_from(commands))
    arguments = list(path)
    options = [option for option in command.params if option.param_type_name == "option"]
    for _ in range(draw(st.sampled_from([0, 0, 1, 1, 2, 3]))):
        if not options:
            break
        option = draw(st.sampled_from(options))
        arguments.append(draw(st.sampled_from([*option.opts, *option.secondary_opts])))
        if not getattr(option, "is_flag", False):
            arguments.append(draw(_values(option)))
    for argument in command.params:
        if argument.param_type_name == "argument" and draw(st.integers(0, 9)) < 9:
            arguments.append(draw(_values(argument)))
    if draw(st.integers(0, 9)) == 0:
        arguments.append(draw(st.sampled_from(["--nosuch", "extra", "-x", "--", "--help=1", "--json"])))
    arguments += LONG.get(path, [])
    return arguments


def _values(option):
    """Values of an option: some fit, most do not."""
    # Typer has had two ways to say it
    kind = str(option.type if hasattr(option, "type") else option.type_descriptor.annotation).lower()
    if "model" in option.name or option.name == "checkpoint":
        # a model that is there would be run
        return st.sampled_from([*PATHS, *(text for text in TEXTS if text not in ("org/name",))])
    if option.name == "name":
        return st.sampled_from([*TEXTS, *["scenes"] * len(TEXTS)])
    if "int" in kind or "float" in kind:
        return st.sampled_from(NUMBERS)
    if "path" in kind:
        fitting = FITTING.get(option.name)
        return st.sampled_from([*PATHS, *[f"samples/{fitting}"] * (len(PATHS) if fitting else 0)])
    return st.sampled_from([*TEXTS, *NUMBERS, *PATHS])


def try_command(samples, folder, stack):
    """The function that runs a command line in a folder of its own."""
    before = Path.cwd()
    os.chdir(folder)
    stack.callback(os.chdir, before)
    stack.enter_context(mock.patch.dict(os.environ, {"XDG_STATE_HOME": str(folder / "state"), "HF_HUB_OFFLINE": "1"}))

    whole = Whole(samples.folder, folder / "samples")

    def try_one(arguments):
        whole.restore()
        code, err = run_command(arguments)
        lines = err.splitlines()
        errors = [line for line in lines if line.startswith("error: ")]
        if code == 4:
            raise RuntimeError(errors[-1] if errors else err)
        if "Traceback" in err:
            raise RuntimeError(f"a traceback: {err[-300:]}")
        if code not in (0, 1, 2, 3):
            raise Wrong(f"exit code {code}: {err}")
        if (code == 2) != (len(errors) == 1) or (errors and lines[-1] != errors[0]):
            raise Wrong(f"exit code {code} with {err!r}")
        return errors[0] if errors else None

    return try_one


class Whole:
    """A copy of a folder that can be made whole again."""

    def __init__(self, source, copy):
        self.source, self.copy = source, copy
        self.seen = None

    def restore(self):
        """Make the copy again if anything in it has changed."""
        if self.seen is None or self.seen != self._state():
            shutil.rmtree(self.copy, ignore_errors=True)
            shutil.copytree(self.source, self.copy, ignore=shutil.ignore_patterns("diffusion_pytorch_model*"))
            self.seen = self._state()

    def _state(self):
        return {(str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in self.copy.rglob("*")}


def run_command(arguments):
    """Exit code and standard error of a command line, run in this process."""
    out, err = io.StringIO(), io.StringIO()
    with mock.patch.object(sys, "argv", ["cryptomnesia", *arguments]), redirect_stdout(out), redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as ended:
            return ended.code or 0, err.getvalue()
    raise AssertionError("the command line did not end Python")
