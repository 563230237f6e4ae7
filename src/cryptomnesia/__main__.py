"""`cryptomnesia` and `python -m cryptomnesia`: the command line, also where a package that it needs is broken."""

import sys


def main() -> None:
    """Run the command line and exit; with code 4 if it cannot be imported, because Python's own 1 means flagged."""
    try:
        from cryptomnesia.cli import main as run
    except ImportError as error:
        reason = " ".join(str(error).split())
        print(f"error: the program cannot start ({reason}); install cryptomnesia again", file=sys.stderr)  # noqa: T201
        sys.exit(4)
    run()


if __name__ == "__main__":
    main()
