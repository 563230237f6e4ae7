import pytest
import torch

from cryptomnesia.matching import Tiles


def test_tiles_are_the_pixels_tile_by_tile():
    pictures = torch.rand(2, 3, 32, 32)
    described = Tiles().describe(pictures)
    assert described.shape == (2, *Tiles().shape)
    # the second tile of the third row
    torch.testing.assert_close(described[1, 2 * 4 + 1], pictures[1, :, 16:24, 8:16].flatten())


def test_weights_have_the_order_of_the_numbers():
    masks = torch.zeros(1, 64, 64)
    masks[0, :16, 16:24] = 1  # half of the second tile
    weights = Tiles().weights(masks)
    assert weights[0, 1].mean().item() == 0.5
    assert weights.sum().item() == weights[0, 1].sum().item()
    torch.testing.assert_close(weights, Tiles().describe(masks[:, ::2, ::2].expand(3, -1, -1)[None]))


def test_contrast_is_the_deviation_from_the_mean_colour():
    tiles = Tiles()
    pictures = torch.stack([torch.rand(3, 32, 32), torch.tensor([0.9, 0.1, 0.4]).view(3, 1, 1).expand(3, 32, 32)])
    weights = torch.zeros(1, 32, 32)
    weights[:, 8:24, 4:20] = 1
    inside = pictures[:, :, 8:24, 4:20]
    expected = (inside - inside.mean(dim=(2, 3), keepdim=True)).square().mean(dim=(1, 2, 3)).sqrt()
    found = tiles.contrast(tiles.describe(pictures), tiles.weights(weights)[0])
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("tiles", [Tiles(), Tiles(side=16, across=2), Tiles(side=128, across=8)])
def test_tiles_are_found_by_their_name(tiles):
    assert Tiles.named(tiles.name) == tiles


@pytest.mark.parametrize("name", ["sscd 0123456789ab, 288 pixels", "tiles", "tiles, 32 pixels, 4 across, rotated", ""])
def test_other_names_are_no_tiles(name):
    assert Tiles.named(name) is None
