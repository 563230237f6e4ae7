import torch

from cryptomnesia.matching.distances import counted, cut, distances_between, distances_from


def test_the_distance_is_the_largest_weighted_difference_of_a_tile():
    rng = torch.Generator().manual_seed(0)
    described, others = torch.rand(4, 12, generator=rng), torch.rand(5, 4, 12, generator=rng)
    weights = torch.rand(4, 12, generator=rng)
    weights[3] = 0  # a tile without weights does not count
    expected = [
        max(
            sum(w * (x - y) ** 2 for w, x, y in zip(*tile, strict=True)) / sum(tile[0])
            for tile in zip(weights[:3].tolist(), described[:3].tolist(), other[:3].tolist(), strict=True)
        )
        ** 0.5
        for other in others
    ]
    torch.testing.assert_close(distances_from(described, others, weights), torch.tensor(expected))


def test_many_distances_at_once_are_those_of_one_picture_after_the_other():
    rng = torch.Generator().manual_seed(1)
    described, others = torch.rand(3, 4, 12, generator=rng), torch.rand(7, 4, 12, generator=rng)
    weights = torch.rand(3, 4, 12, generator=rng)
    rows = [distances_from(picture, others, mask) for picture, mask in zip(described, weights, strict=True)]
    torch.testing.assert_close(distances_between(described, others, weights), torch.stack(rows))
    shared = [distances_from(picture, others, weights[0]) for picture in described]
    torch.testing.assert_close(distances_between(described, others, weights[:1]), torch.stack(shared))


def test_the_arguments_are_not_changed():
    described, others, weights = torch.rand(2, 3), torch.rand(4, 2, 3), torch.rand(2, 3)
    before = [values.clone() for values in (described, others, weights)]
    distances_from(described, others, weights)
    assert all(values.equal(copy) for values, copy in zip((described, others, weights), before, strict=True))


def test_a_tile_counts_when_half_of_it_lies_in_the_mask():
    weights = torch.tensor([[1.0, 1, 0, 0], [1, 0, 0, 0], [0.5, 0.5, 0.5, 0.5], [0.9, 0.9, 0.1, 0]])
    assert counted(weights).tolist() == [[1, 1, 0, 0], [0, 0, 0, 0], [0.5, 0.5, 0.5, 0.5], [0, 0, 0, 0]]


def test_tiles_are_cut_row_by_row_and_keep_their_precision():
    pictures = torch.rand(2, 3, 12, 12, dtype=torch.float64)
    tiles = cut(pictures, 3)
    assert tiles.shape == (2, 9, 48)
    assert tiles[1, 5].equal(pictures[1, :, 4:8, 8:].flatten())
    assert tiles.dtype == torch.float64
