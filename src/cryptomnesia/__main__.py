"""`cryptomnesia` and `python -m cryptomnesia`: the command line, also where a package that it needs is broken."""

import sys


def main() -> None:
    """Run the command line and exit; with code 4 if it cannot be imported, because Python's own 1 means flagged."""
    try:
        from cryptomnesia.cli import main as run
    except KeyboardInterrupt:
        _end("interrupted", 130)
    # a broken package may raise anything
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        _end(f"the program cannot start ({reason}); install cryptomnesia again", 4)
    else:
        run()


def _end(line: str, code: int) -> None:
    print(f"error: {line}", file=sys.stderr)  # noqa: T201
    sys.exit(code)


if __name__ == "__main__":
    main()
