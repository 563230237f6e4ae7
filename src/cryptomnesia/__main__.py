"""`python -m cryptomnesia`: the command line."""

from cryptomnesia.cli import main

main()
