"""Methods for cryptomnesia, found through the entry points in `pyproject.toml`."""
