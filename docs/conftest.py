"""Run the examples of the pages as tests.

The Python blocks of a page run one after the other, in one namespace for each page. A `text` block says what the Python
block before it prints; `...` stands for anything. A block that should not run has a comment before it, with the
reason: `<!-- skip: next "takes minutes" -->`. Pages of `docs/tutorials/` with `sh` blocks are run by
`tests/test_tutorials.py`.
"""

import io
from contextlib import redirect_stdout
from doctest import ELLIPSIS, NORMALIZE_WHITESPACE, OutputChecker

from sybil import Sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser, SkipParser

PRINTED = "_printed"
"""Name in a page's namespace of what its last Python block printed."""


class PrintingEvaluator(PythonEvaluator):
    """Runs Python blocks and keeps what they print."""

    def __call__(self, example):
        """Run a block."""
        with redirect_stdout(io.StringIO()) as printed:
            super().__call__(example)
        example.namespace[PRINTED] = printed.getvalue()


def compare(example):
    """What is wrong with a `text` block, None if it says what was printed."""
    printed = example.namespace.pop(PRINTED, None)
    if printed is None:
        return None
    flags = ELLIPSIS | NORMALIZE_WHITESPACE
    if OutputChecker().check_output(example.parsed, printed, flags):
        return None
    return f"the page says\n{example.parsed}\nand the block printed\n{printed}"


pytest_collect_file = Sybil(
    parsers=[
        CodeBlockParser("python", PrintingEvaluator()),
        CodeBlockParser("text", compare),
        SkipParser(),
    ],
    pattern="*.md",
).pytest()
