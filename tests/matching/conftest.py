"""Fixtures of the tests of the index and of matches."""

import numpy as np
import pytest

from picture_files import save


@pytest.fixture
def pictures(tmp_path):
    """A folder of forty random pictures, ten of them in a subfolder."""
    rng = np.random.default_rng(0)
    for number in range(40):
        name = f"deep/{number:02}.png" if number % 4 == 0 else f"{number:02}.png"
        save(tmp_path / "images" / name, rng.random((64, 64, 3)))
    return tmp_path / "images"
