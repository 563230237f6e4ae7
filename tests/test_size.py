"""How large the repository is: a clone has every weight, and history keeps all of them."""

import subprocess

import pytest

from cryptomnesia.proving_ground import BUNDLE


def test_all_files_together_have_at_most_56_megabytes(request):
    root = request.config.rootpath
    if not (root / ".git").exists():
        pytest.skip("this is no clone")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=True).stdout
    files = [root / name for name in listed.split("\0") if name]
    assert len(files) > 300
    assert sum(file.lstat().st_size for file in files if file.exists()) <= 56e6


@pytest.mark.parametrize("bundle", sorted(BUNDLE.parent.iterdir()), ids=lambda folder: folder.name)
def test_a_bundle_has_at_most_25_megabytes(bundle):
    assert sum(file.stat().st_size for file in bundle.rglob("*") if file.is_file()) <= 25e6
