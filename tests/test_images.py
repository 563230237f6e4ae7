import torch

from cryptomnesia.images import upsampled


def test_upsampling_keeps_a_flat_map_flat():
    assert torch.equal(upsampled(torch.ones(1, 4, 4), 16, 16), torch.ones(1, 16, 16))
