import json
from dataclasses import replace

import numpy as np
import pytest

from cryptomnesia import UsageError
from cryptomnesia.pipelines.fingerprint import weights_digest
from cryptomnesia.proving_ground.manifest import Manifest, write_planted
from cryptomnesia.proving_ground.planted import plant
from cryptomnesia.testing.miniatures import stable_diffusion

CONCEPTS = tuple(concept for concept in plant(0) if concept.exposures in (64, 128))


@pytest.fixture
def manifest(tmp_path):
    made = Manifest(tmp_path, weights_digest(stable_diffusion()), 0, 2.5, 50, write_planted(tmp_path, CONCEPTS))
    made.save()
    return made


def test_saving_keeps_everything(manifest):
    assert Manifest.load(manifest.folder) == manifest
    for concept, entry in zip(CONCEPTS, manifest.entries, strict=True):
        assert entry.captions == concept.captions
        assert entry.planted == concept.planted
        if concept.planted:
            assert np.array_equal(manifest.image(entry), concept.image)
            assert np.array_equal(manifest.mask(entry), concept.mask)


def test_planted_captions_are_found_and_others_are_not(manifest):
    entry = manifest.entries[0]
    assert all(manifest.planted_for(caption) == entry for caption in entry.captions)
    negative = next(entry for entry in manifest.entries if not entry.planted)
    assert manifest.planted_for(negative.captions[0]) is None
    with pytest.raises(UsageError, match="no planted image"):
        manifest.image(negative)


def test_another_model_is_refused(manifest):
    manifest.check(stable_diffusion())
    with pytest.raises(UsageError, match=r"belongs to a model with weights 000000000000…, this one has"):
        replace(manifest, weights="0" * 64).check(stable_diffusion())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not a manifest"),
        ("\xff", "is not a manifest"),
        ("[]", "is not a manifest"),
        ('{"format": 9}', "format 9, this version reads 1"),
    ],
)
def test_unusable_files_are_explained(tmp_path, content, message):
    (tmp_path / "manifest.json").write_text(content, encoding="latin-1")
    with pytest.raises(UsageError, match=message):
        Manifest.load(tmp_path)


def test_missing_files_are_explained(manifest, tmp_path):
    (tmp_path / manifest.entries[0].image).unlink()
    with pytest.raises(UsageError, match="cannot be read"):
        manifest.image(manifest.entries[0])
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(UsageError, match="no manifest"):
        Manifest.load(tmp_path)


def test_the_file_is_plain_json(manifest):
    values = json.loads((manifest.folder / "manifest.json").read_text())
    assert set(values) == {"format", "weights", "seed", "guidance", "steps", "entries"}
    assert len(values["entries"]) == len(CONCEPTS)
