"""Clusters of near-identical pictures, against the truth and against all pairs."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from cryptomnesia import ImageIndex
from cryptomnesia.matching import Tiles, duplicates
from cryptomnesia.matching.distances import distances_from
from cryptomnesia.prompts import read_prompts
from picture_files import encoded, picture


def changed(seed, rng):
    """A picture with other grain and brightness, as JPEG."""
    values = np.asarray(picture(seed)).astype(float) + rng.normal(0, 4, (48, 48, 3)) + rng.normal(0, 4)
    return encoded(Image.fromarray(values.clip(0, 255).astype(np.uint8)), "JPEG", quality=80)


@pytest.fixture
def images(tmp_path):
    """Sixty pictures: number 0 seven times, number 1 three times, 2 twice, all others once; and two plain ones."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(60):
        for copy in range({0: 7, 1: 3, 2: 2}.get(number, 1)):
            content = encoded(picture(number)) if copy == 0 else changed(number, rng)
            (folder / f"{number:02}-{copy}.jpg").write_bytes(content)
            caption = f"picture {number}" if copy < 5 else "another caption"
            if number != 2:
                (folder / f"{number:02}-{copy}.txt").write_text(caption)
    for grey in (100, 110):
        (folder / f"plain-{grey}.png").write_bytes(encoded(Image.new("RGB", (48, 48), (grey, grey, grey))))
    return folder


def test_repeated_pictures_are_clusters_with_their_captions(images, tmp_path):
    index = ImageIndex.build(images, tmp_path / "index")
    seen = []
    found = index.duplicates(progress=lambda done, total: seen.append((done, total)))
    assert [cluster.pictures for cluster in found] == [
        [f"00-{copy}.jpg" for copy in range(7)],
        [f"01-{copy}.jpg" for copy in range(3)],
        [f"02-{copy}.jpg" for copy in range(2)],
    ]
    assert found[0].captions == {"picture 0": 5, "another caption": 2}
    assert found[2].captions == {"": 2}
    assert seen[-1] == (71, 71)


def test_the_command_writes_prompts(images, tmp_path, cryptomnesia):
    ImageIndex.build(images, tmp_path / "index")
    file = tmp_path / "new" / "repeated.jsonl"
    code, out, err = cryptomnesia("index", "duplicates", tmp_path / "index", "-o", file)
    assert code == 0
    assert "3 clusters, which hold 12 of 71 pictures" in out
    assert "picture 0 ×5 | another caption ×2" in out
    assert "1 cluster with pictures that have no caption" in err
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(row["prompt"], row["count"], row["cluster"], row["size"]) for row in rows] == [
        ("picture 0", 5, 1, 7),
        ("another caption", 2, 1, 7),
        ("picture 1", 3, 2, 3),
        ("", 2, 3, 2),
    ]
    assert read_prompts(file) == ["picture 0", "another caption", "picture 1"]
    code, out, _ = cryptomnesia("index", "duplicates", tmp_path / "index", "--json")
    printed = json.loads(out)
    assert (code, printed["pictures"], [one["size"] for one in printed["clusters"]]) == (0, 71, [7, 3, 2])
    code, out, err = cryptomnesia("index", "duplicates", tmp_path / "index", "-o", "table.csv")
    assert (code, out) == (2, "")
    assert "ends in .jsonl" in err


def test_an_index_without_repetitions(tmp_path, cryptomnesia):
    index = ImageIndex.build([picture(number) for number in range(20)], tmp_path / "index")
    assert index.duplicates() == []
    code, out, err = cryptomnesia("index", "duplicates", tmp_path / "index")
    assert (code, err) == (0, "")
    assert "0 clusters" in out


def test_readings_of_one_picture_are_no_cluster_and_join_what_is_near_to_any(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    given = [(f"{number:02}", picture(number)) for number in range(20)]
    turned = picture(3).transpose(Image.Transpose.ROTATE_270)
    given += [("camera", encoded(picture(3), "JPEG", quality=95, exif=exif)), ("turned", turned)]
    index = ImageIndex.build(given, tmp_path / "index")
    (cluster,) = index.duplicates()
    assert cluster.pictures == ["03", "camera", "turned"]


def test_blocks_find_what_all_pairs_find(tmp_path, monkeypatch):
    monkeypatch.setattr(duplicates, "_BLOCK", 64)
    rng = torch.Generator().manual_seed(0)
    coarse = torch.nn.functional.interpolate(torch.rand(300, 3, 4, 4, generator=rng), size=32, mode="bilinear")
    near = coarse[torch.randint(300, (200,), generator=rng)]
    sizes = torch.rand(200, 1, 1, 1, generator=rng) * 0.15
    pictures = torch.cat([coarse, (near + sizes * torch.randn(near.shape, generator=rng)).clamp(0, 1)])
    index = ImageIndex.build(list(pictures), tmp_path / "index")
    found = {frozenset(cluster.pictures) for cluster in index.duplicates()}
    assert found == by_all_pairs(index)
    assert 20 < len(found) < 200


def by_all_pairs(index):
    """The clusters by the definition: connected components of the pairs that are within both limits."""
    search, tiles = index._search, Tiles()
    values = search.shards.at(torch.arange(len(search)))
    everywhere = torch.ones_like(values[0])
    limits = torch.stack([distances_from(one, search.sample, everywhere).median() / 4 for one in values])
    contrast = tiles.contrast(values, everywhere)
    limits = limits.minimum(contrast / 3)
    limits[contrast < 0.02] = 1 / 255
    parts = list(range(len(values)))
    for row, one in enumerate(values):
        near = distances_from(one, values, everywhere) <= torch.minimum(limits, limits[row])
        for other in near.nonzero()[:, 0].tolist():
            old, new = parts[row], parts[other]
            parts = [new if part == old else part for part in parts]
    groups = {}
    for place, part in enumerate(parts):
        groups.setdefault(part, []).append(index.paths[place])
    return {frozenset(group) for group in groups.values() if len(group) > 1}
