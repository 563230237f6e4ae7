import torch

from cryptomnesia.auditing.examiner import core


def test_the_core_is_the_half_of_the_mask_where_the_map_is_highest():
    heat = torch.tensor([[9.0, 1.0, 2.0], [3.0, 4.0, 9.0]])
    mask = torch.tensor([[False, True, True], [True, True, False]])
    assert core(heat, mask).tolist() == [[False, False, True], [True, True, False]]


def test_an_empty_mask_has_an_empty_core():
    assert not core(torch.ones(2, 2), torch.zeros(2, 2, dtype=torch.bool)).any()
