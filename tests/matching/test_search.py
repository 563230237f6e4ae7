import torch

from cryptomnesia.images import square
from cryptomnesia.matching import ImageIndex, Tiles, search, shards
from picture_files import tensor


def test_a_search_finds_the_same_as_brute_force(pictures, tmp_path):
    index = ImageIndex.build(pictures, tmp_path / "index", Tiles(), shard=7)
    assert len(index) == 40
    queries = torch.rand(3, 3, 64, 64)
    masks = torch.rand(3, 64, 64) > 0.3
    found = index.search(queries, masks=masks, k=5)
    tiles = Tiles()
    all_pictures = torch.stack([square(tensor(pictures / path), 32) for path in index.paths])
    weights = tiles.weights(masks)
    for row in range(3):
        squares = (tiles.describe(square(queries[row], 32)[None]) - tiles.describe(all_pictures)) ** 2
        inside = weights[row] * (weights[row].mean(dim=1, keepdim=True) >= 0.5)
        exact = ((inside * squares).sum(dim=2) / inside.sum(dim=1).clamp_min(1e-9)).amax(dim=1).sqrt()
        # descriptors are stored in half precision, so nearly equal distances may change their order
        torch.testing.assert_close(found.distances[row], exact.sort().values[:5], atol=2e-3, rtol=0)
        torch.testing.assert_close(found.distances[row], exact[found.positions[row]], atol=2e-3, rtol=0)


def test_a_picture_is_its_own_nearest(pictures, tmp_path):
    index = ImageIndex.build(pictures, tmp_path / "index", Tiles())
    path = "deep/08.png"
    found = index.search(tensor(pictures / path)[None], k=100)
    assert index.paths[found.positions[0, 0]] == path
    assert found.distances[0, 0] < 0.002
    assert found.distances.shape == (1, 40)


def test_a_picture_is_found_by_a_region_when_the_rest_differs(pictures, tmp_path):
    index = ImageIndex.build(pictures, tmp_path / "index", Tiles())
    template = tensor(pictures / "01.png")
    mask = torch.zeros(64, 64)
    mask[:, 32:] = 1
    query = torch.where(mask.bool(), template, 0.0)
    whole = index.search(query[None])
    inside = index.search(query[None], masks=mask[None])
    assert inside.distances.item() < 0.002
    assert index.paths[inside.positions.item()] == "01.png"
    assert whole.distances.item() > 0.3


def test_an_empty_mask_matches_nothing(pictures, tmp_path):
    index = ImageIndex.build(pictures, tmp_path / "index", Tiles())
    mask = torch.zeros(1, 64, 64)
    mask[0, :4, :4] = 1  # a sliver of one tile
    assert index.search(torch.rand(1, 3, 64, 64), masks=mask).distances.isinf().all()


def test_descriptors_that_are_read_when_needed_are_those_in_memory(pictures, tmp_path, monkeypatch):
    ImageIndex.build(pictures, tmp_path / "index", Tiles(), shard=7)
    held = shards.Shards(tmp_path / "index", Tiles().shape)
    places = torch.tensor([33, 2, 39, 2, 0, 14, 13])
    wanted = held.at(places)
    assert wanted.shape == (7, 16, 192)
    weights = torch.rand(16, 192)
    distances = search.Search(held, None).distances(wanted[1], places, weights)
    assert distances[[1, 3]].tolist() == [0, 0]
    monkeypatch.setattr(shards, "HELD", 0)
    monkeypatch.setattr(search, "IN_CACHE", 2 * 16 * 192)
    read = shards.Shards(tmp_path / "index", Tiles().shape)
    assert read.at(places).equal(wanted)
    assert read.at(places[:0]).shape == (0, 16, 192)
    # every portion has two pictures
    torch.testing.assert_close(search.Search(read, None).distances(wanted[1], places, weights), distances)
