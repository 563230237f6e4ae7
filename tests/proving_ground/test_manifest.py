import json
from dataclasses import replace

import numpy as np
import pytest

from cryptomnesia import UsageError
from cryptomnesia.pipelines.fingerprint import weights_digest
from cryptomnesia.proving_ground.draws import Draws
from cryptomnesia.proving_ground.grounds.scenes import GROUND
from cryptomnesia.proving_ground.manifest import Manifest, write_planted
from cryptomnesia.proving_ground.recognizer import ordinary
from cryptomnesia.proving_ground.replication import planted_distance
from cryptomnesia.testing.miniatures import stable_diffusion

CONCEPTS = tuple(concept for concept in GROUND.plant(0) if concept.exposures in (64, 128))
OTHERS = np.stack([image for image, _ in ordinary(GROUND, 0, 0, 20)])


@pytest.fixture
def manifest(tmp_path):
    entries = write_planted(tmp_path, CONCEPTS, OTHERS)
    about = {"autoencoder_distance_max": 0.125}, {"evaluation": ["a red circle"]}
    made = Manifest(tmp_path, "scenes", weights_digest(stable_diffusion()), 0, 2.5, 50, entries, *about)
    made.save()
    return made


def test_saving_keeps_everything(manifest):
    assert Manifest.load(manifest.folder) == manifest
    for concept, entry in zip(CONCEPTS, manifest.entries, strict=True):
        assert entry.captions == concept.captions
        assert entry.planted == concept.planted
        assert (entry.wording, entry.varied) == (concept.wording, 0)
        assert (entry.free_spread is not None) == (concept.kind == "template")
        assert (entry.nearest is not None) == concept.planted
        if concept.planted:
            assert np.array_equal(manifest.image(entry), concept.image)
            assert np.array_equal(manifest.mask(entry), concept.mask)


def test_a_concept_of_which_ordinary_pictures_are_copies_does_not_count(tmp_path):
    planted = [concept for concept in CONCEPTS if concept.planted]
    copies = np.stack([OTHERS[0], planted[1].exposure(Draws(5)), OTHERS[1]])
    for others, counted in ((OTHERS, planted), (copies, [planted[0], *planted[2:]])):
        entries = write_planted(tmp_path, CONCEPTS, others)
        found = Manifest(tmp_path, "scenes", "0" * 64, 0, 2.5, 50, entries).counted
        assert [entry.id for entry in found] == [concept.id for concept in counted]
        for entry, concept in zip(found, counted, strict=True):
            distances = [planted_distance(others, concept.places).min()]
            distances += [planted_distance(concept.fresh(Draws(0, 8, number)), concept.places) for number in range(20)]
            assert entry.nearest == pytest.approx(min(distances))


def test_of_an_object_every_place_is_written(planted, tmp_path):
    concepts = [concept for concept in planted if concept.exposures == min(c.exposures for c in planted)]
    others = np.zeros((1, 64, 64, 3), dtype=np.uint8)
    Manifest(tmp_path, "drawings", "0" * 64, 0, 2.5, 50, write_planted(tmp_path, concepts, others)).save()
    manifest = Manifest.load(tmp_path)
    for concept, entry in zip(concepts, manifest.entries, strict=True):
        assert (entry.wording, entry.varied) == (concept.wording, concept.varied)
        places = manifest.places(entry)
        assert len(places) == len(concept.places) == (3 if concept.kind == "object" else 1)
        for found, place in zip(places, concept.places, strict=True):
            assert np.array_equal(found.image, place.image)
            assert np.array_equal(found.mask, place.mask)
        for place in places:
            image, mask = manifest.nearest_place(entry, place.image)
            assert np.array_equal(mask, place.mask)
            assert np.array_equal(image[mask], place.image[mask])
            assert len(places) == 1 or (image[~mask] == 255).all()
    assert all((entry.varied > 0) == (entry.wording == "mode") for entry in manifest.entries)
    assert len(list((tmp_path / "planted").iterdir())) == 2 * sum(len(concept.places) for concept in concepts)
    assert manifest.top == min(c.exposures for c in planted)


def test_the_spread_in_the_free_region_is_that_of_exposures(manifest):
    for concept, entry in zip(CONCEPTS, manifest.entries, strict=True):
        if concept.kind == "template":
            exposures = np.stack([concept.exposure(Draws(8, number)) for number in range(64)]) / 255
            spread = exposures[:, ~concept.mask].std(axis=0, ddof=1).mean()
            assert entry.free_spread == pytest.approx(spread, rel=0.15)


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
        ('{"format": 9}', "format 9, this version reads 2"),
        ('{"format": 1, "weights": "", "entries": []}', "format 1, this version reads 2"),
        ('{"format": 2, "ground": "scenes"}', "is not a manifest"),
    ],
)
def test_unusable_files_are_explained(tmp_path, content, message):
    (tmp_path / "manifest.json").write_text(content, encoding="latin-1")
    with pytest.raises(UsageError, match=message) as refused:
        Manifest.load(tmp_path)
    assert "\n" not in str(refused.value)


def test_missing_files_are_explained(manifest, tmp_path):
    (tmp_path / manifest.entries[0].places[0][0]).unlink()
    with pytest.raises(UsageError, match="cannot be read"):
        manifest.image(manifest.entries[0])
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(UsageError, match="no manifest"):
        Manifest.load(tmp_path)


def test_the_file_is_plain_json(manifest):
    values = json.loads((manifest.folder / "manifest.json").read_text())
    assert set(values) == {
        "format",
        "ground",
        "weights",
        "seed",
        "guidance",
        "steps",
        "bounds",
        "look_alikes",
        "entries",
    }
    assert len(values["entries"]) == len(CONCEPTS)
