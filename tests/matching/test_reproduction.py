from itertools import pairwise

import pytest
import torch
from PIL import Image

from cryptomnesia import UsageError
from cryptomnesia.matching import ImageIndex, Tiles
from cryptomnesia.matching.reproduction import check_size
from cryptomnesia.proving_ground.draws import Draws
from cryptomnesia.proving_ground.scenes import Description, Scene
from picture_files import save, tensor


def test_a_match_is_nearer_than_pictures_usually_are(pictures, tmp_path):
    for copy in range(60):  # a training image that the index holds many times
        save(pictures / f"copy-{copy:02}.png", tensor(pictures / "02.png").permute(1, 2, 0))
    index = ImageIndex.build(pictures, tmp_path / "index", Tiles())
    rng = torch.Generator().manual_seed(0)
    near = (tensor(pictures / "02.png") + 0.02 * torch.randn(3, 64, 64, generator=rng)).clamp(0, 1)
    other = torch.rand(3, 64, 64, generator=rng)
    found = index.match(torch.stack([near, other]), fpr=0.05)
    assert tensor(pictures / found.paths[0]).equal(tensor(pictures / "02.png"))
    assert found.reproduced.tolist() == [True, False]
    assert found.p_values[0] <= 0.05
    assert found.p_values[1] == 1
    assert found.relative[0] < 0.2
    assert 1 < found.relative[1] <= 2
    sliver = torch.zeros(2, 64, 64)
    sliver[:, :4, :4] = 1
    assert not index.match(torch.stack([near, other]), masks=sliver).reproduced.any()


def scenes(first, count):
    """Yield pictures of plain scenes, all different."""
    for number in range(first, first + count):
        draws = Draws(0, 99, number)
        yield torch.from_numpy(Scene.draw(draws, Description.draw(draws)).pixels()).permute(2, 0, 1).float() / 255


def test_plain_corners_are_no_match(tmp_path):
    for number, scene in enumerate(scenes(0, 300)):
        save(tmp_path / "pictures" / f"{number:03}.png", scene.permute(1, 2, 0))
    template = next(scenes(900, 1))
    for copy in range(20):  # whole copies of the template are no matches by chance
        save(tmp_path / "pictures" / f"copy-{copy:02}.png", template.permute(1, 2, 0))
    for number, scene in enumerate(scenes(950, 20)):  # neither are pictures that share its right half
        scene[:, :, 32:] = template[:, :, 32:]
        save(tmp_path / "pictures" / f"template-{number:02}.png", scene.permute(1, 2, 0))
    index = ImageIndex.build(tmp_path / "pictures", tmp_path / "index", Tiles())
    queries = torch.stack(list(scenes(1000, 100)))
    corner, half = torch.zeros(2, 64, 64)
    corner[:16, :16] = 1
    half[:, 32:] = 1
    # fewer queries for the corner, because every match by chance takes the search for a null
    for mask, asked, chance in ((corner, queries[:15], 0.3), (half, queries, 0.03)):
        found = index.match(asked, masks=mask.expand(len(asked), -1, -1), fpr=0.05)
        assert (found.relative <= 1).float().mean() >= chance
        assert found.reproduced.float().mean() <= 0.1
        assert (found.p_values[found.relative > 1] == 1).all()
    free = torch.stack([template, *queries[:3]])
    free[0, :, :, :32] = queries[0, :, :, :32]
    found = index.match(free, masks=half.expand(4, -1, -1))
    assert found.reproduced.tolist() == [True, False, False, False]
    assert found.paths[0].startswith(("copy", "template"))
    assert found.p_values[0] == 0.01
    assert index.match(free[:1], masks=half[None], fpr=0.05).p_values[0] == 0.05


def test_a_query_that_is_as_near_as_pictures_of_the_index_are_to_each_other_is_no_match(tmp_path):
    rng = torch.Generator().manual_seed(0)
    first = torch.rand(120, 3, 32, 32, generator=rng)
    # a third of the way to another picture: nearer than usual, but no copy
    siblings, again = (first.lerp(torch.rand(first.shape, generator=rng), part) for part in (0.28, 0.32))
    for number, picture in enumerate(first):
        save(tmp_path / "alone" / f"{number}.png", picture.permute(1, 2, 0))
        save(tmp_path / "in pairs" / f"{number}.png", picture.permute(1, 2, 0))
        save(tmp_path / "in pairs" / f"{number} again.png", siblings[number].permute(1, 2, 0))
    queries = torch.stack([again[0], first[1], torch.rand(3, 32, 32, generator=rng)])
    alone, pairs = (
        ImageIndex.build(tmp_path / name, tmp_path / f"index {name}", Tiles()).match(queries)
        for name in ("alone", "in pairs")
    )
    assert alone.reproduced.tolist() == [True, True, False]
    assert pairs.relative[0] <= 1
    assert pairs.p_values[0] > 0.5
    assert pairs.reproduced.tolist() == [False, True, False]
    assert pairs.p_values[1] == 0.01
    assert pairs.p_values[2] == 1


def test_the_p_value_of_a_small_index_cannot_be_small(pictures, tmp_path):
    index = ImageIndex.build(pictures, tmp_path / "index", Tiles())
    copy = tensor(pictures / index.paths[3])[None]
    assert index.match(copy, fpr=0.05).reproduced.all()
    strict = index.match(copy)
    assert not strict.reproduced.any()
    assert strict.p_values[0] == 1 / 40


def test_a_picture_with_next_to_no_contrast_is_no_match(pictures, tmp_path):
    """However near it is: a picture that a safety checker made black, the white background of many pictures."""
    Image.new("RGB", (64, 64)).save(pictures / "black.png")
    for number in range(20):
        picture = torch.rand(64, 64, 3, generator=torch.Generator().manual_seed(number))
        picture[:, 40:] = 1
        save(pictures / f"ground-{number:02}.png", picture)
    index = ImageIndex.build(pictures, tmp_path / "index", Tiles())
    ground = torch.rand(3, 64, 64)
    ground[:, :, 32:] = 0.99
    masks = torch.zeros(2, 64, 64)
    masks[0], masks[1, :, 40:] = 1, 1
    found = index.match(torch.stack([torch.zeros(3, 64, 64), ground]), masks=masks, fpr=0.2)
    assert (found.relative <= 0.2).all()
    assert found.p_values.tolist() == [1, 1]
    assert not found.reproduced.any()


def test_matches_are_read_one_by_one(pictures, tmp_path):
    index = ImageIndex.build(pictures, tmp_path / "index", Tiles())
    found = index.match(torch.stack([tensor(pictures / "01.png"), torch.zeros(3, 64, 64)]), fpr=0.05)
    assert len(found) == 2
    copy, black = found
    assert copy.path == found.paths[0] == "01.png"
    assert copy.reproduced is True
    assert copy.p_value == found.p_values[0].item()
    assert black.reproduced is False
    assert black.p_value == 1
    assert [match.distance for match in found] == found.distances.tolist()
    assert [match.relative for match in found] == found.relative.tolist()


def test_p_values_have_the_resolution_of_the_null(pictures, tmp_path):
    index = ImageIndex.build(pictures, tmp_path / "index", Tiles())
    copy = tensor(pictures / "01.png")[None]
    smallest = [index.match(copy, fpr=fpr).p_values.item() for fpr in (0.5, 0.2, 0.1, 0.05)]
    assert smallest == [0.5, 0.2, 0.1, 0.05]
    assert all(coarse > fine for coarse, fine in pairwise(smallest))


@pytest.mark.parametrize("fpr", [0.0, 1.0, -0.1, float("nan")])
def test_a_rate_lies_between_0_and_1(fpr):
    with pytest.raises(UsageError, match="give one between 0 and 1"):
        check_size(10_000, fpr)


def test_an_index_has_to_support_the_rate():
    check_size(150, 0.01)
    with pytest.raises(UsageError, match=r"holds 149 pictures, too few .* at a rate of 0.01; .*, 150 at least"):
        check_size(149, 0.01)
    # the usual distance takes some pictures at any rate
    with pytest.raises(UsageError, match="12 at least"):
        check_size(11, 0.5)
