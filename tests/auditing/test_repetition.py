import torch

from cryptomnesia.auditing.repetition import repeated


def test_pictures_of_a_prompt_repeat_each_other_where_they_agree_inside_the_region():
    generator = torch.Generator().manual_seed(0)
    pictures = [torch.rand(3, 32, 32, generator=generator) for _ in range(40)]
    pictures[1][:, :, 16:] = pictures[0][:, :, 16:]  # the right half comes again
    prompts = ["again", "again", "other", "other", *(f"ordinary {number}" for number in range(36))]
    right = torch.zeros(8, 8, dtype=torch.bool)
    right[:, 4:] = True
    everywhere = torch.ones(8, 8, dtype=torch.bool)
    assert repeated(prompts, pictures, {0: right, 1: right, 2: right, 3: right}, fpr=0.05) == {0, 1}
    assert repeated(prompts, pictures, {0: everywhere, 1: everywhere}, fpr=0.05) == set()
    assert repeated(prompts, pictures, {0: right, 1: ~right}, fpr=0.05) == set()
    # 37 other prompts cannot support a rate of 0.01, and where the others are as similar it says nothing
    assert repeated(prompts, pictures, {0: right, 1: right}, fpr=0.01) == set()
    plain = [picture.clone() for picture in pictures]
    for number in range(2, 20):
        plain[number][:, :, 16:] = plain[0][:, :, 16:]
    assert repeated(prompts, plain, {0: right, 1: right}, fpr=0.05) == set()
