import torch

from cryptomnesia.images import pixels, upsampled


def test_upsampling_keeps_a_flat_map_flat():
    assert torch.equal(upsampled(torch.ones(1, 4, 4), 16, 16), torch.ones(1, 16, 16))


def test_the_picture_of_a_broken_run_is_black_where_it_is_not_known():
    image = torch.ones(3, 2, 2)
    image[:, 0, 0], image[:, 1, 1] = torch.nan, torch.inf
    assert pixels(image)[..., 0].tolist() == [[0, 255], [255, 255]]
