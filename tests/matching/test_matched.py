import numpy as np
import pytest
import torch
from PIL import Image

import cryptomnesia
from cryptomnesia import UsageError
from cryptomnesia.matching import ImageIndex, Tiles
from cryptomnesia.matching.matched import match
from picture_files import save, tensor


@pytest.fixture
def folder(pictures, tmp_path):
    """The folder of an index of the forty pictures."""
    ImageIndex.build(pictures, tmp_path / "index", Tiles())
    return tmp_path / "index"


def noise(seed=9):
    return torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(seed))


def test_a_copy_is_reproduced_and_another_picture_is_not(pictures, folder):
    copy, other = match(torch.stack([tensor(pictures / "01.png"), noise()]), folder, fpr=0.05)
    assert (copy.path, copy.reproduced, copy.p_value) == ("01.png", True, 0.05)
    assert copy.distance < 0.002
    assert (other.reproduced, other.p_value) == (False, 1)


def test_the_verb_is_the_index_s_own_match(pictures, folder):
    queries = torch.stack([tensor(pictures / "01.png"), noise()])
    masks = torch.zeros(2, 64, 64)
    masks[:, :, 32:] = 1
    for given in (None, masks, masks.bool()):
        found = match(queries, folder, masks=given, fpr=0.05)
        expected = ImageIndex(folder, Tiles()).match(queries, masks=given, fpr=0.05)
        assert found.paths == expected.paths
        for name in ("distances", "relative", "p_values", "reproduced"):
            assert getattr(found, name).equal(getattr(expected, name)), name


def test_pictures_are_given_as_paths_pil_images_or_tensors(pictures, folder):
    path = pictures / "01.png"
    with Image.open(path) as picture:
        found = match([path, str(path), picture, tensor(path)], ImageIndex(folder), fpr=0.05)
        alone = [match(one, str(folder), fpr=0.05) for one in (path, str(path), picture, tensor(path))]
    assert found.paths == ["01.png"] * 4
    assert found.reproduced.all()
    assert len(set(found.distances.tolist())) == 1
    # matrix products of another size round differently
    assert [len(one) for one in alone] == [1] * 4
    assert [one.distances.item() for one in alone] == pytest.approx(found.distances.tolist(), abs=1e-3)


def test_pictures_may_differ_in_size(pictures, folder, tmp_path):
    with Image.open(pictures / "01.png") as picture:
        picture.resize((256, 256), Image.Resampling.NEAREST).save(tmp_path / "large.png")
        wide = Image.new("RGB", (128, 64))
        wide.paste(picture, (32, 0))
    found = match([tmp_path / "large.png", wide], folder, fpr=0.05)
    assert found.paths == ["01.png"] * 2
    assert found.reproduced.all()


def test_a_region_is_found_where_the_rest_differs(pictures, folder):
    query = tensor(pictures / "01.png")
    query[:, :, :32] = noise()[:, :, :32]
    region = torch.zeros(8, 8, dtype=torch.bool)
    region[:, 4:] = True
    assert not match(query, folder, fpr=0.05).reproduced.any()
    for masks in (region, region[None], [region]):
        (found,) = match(query, folder, masks=masks, fpr=0.05)
        assert (found.path, found.reproduced) == ("01.png", True)


def test_a_jpeg_that_the_caller_opened_stays_as_it_is(pictures, folder, tmp_path):
    """Decoding at a smaller size would change the size of the caller's picture."""
    with Image.open(pictures / "01.png") as picture:
        picture.resize((1024, 1024)).save(tmp_path / "large.jpg")
    with Image.open(tmp_path / "large.jpg") as opened:
        match([opened], folder, masks=[torch.ones(8, 8)], fpr=0.05)
        assert opened.size == (1024, 1024)


def test_bfloat16_pictures_are_matched(pictures, folder):
    (found,) = match(tensor(pictures / "01.png").bfloat16(), folder, fpr=0.05)
    assert (found.path, found.reproduced) == ("01.png", True)


@pytest.mark.parametrize("nothing", [[], (), torch.zeros(0, 3, 64, 64)])
def test_no_pictures_are_refused(folder, nothing):
    with pytest.raises(UsageError, match="got no pictures; give paths"):
        match(nothing, folder)


def test_files_that_are_no_pictures_are_named(pictures, folder, tmp_path):
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(UsageError, match=r"notes\.txt is no picture that can be read \(UnidentifiedImageError"):
        match([pictures / "01.png", tmp_path / "notes.txt"], folder, fpr=0.05)
    for missing in (tmp_path / "none.png", pictures):
        with pytest.raises(UsageError, match=f"no file {missing}; give the path of a picture"):
            match([missing], folder, fpr=0.05)


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (np.zeros((64, 64, 3)), "got a ndarray as picture 2; give a path, a PIL image or a tensor"),
        (torch.zeros(64, 64), r"got picture 2 of shape \(64, 64\); give \(3, H, W\)"),
        (torch.zeros(64, 64, 3), r"got picture 2 of shape \(64, 64, 3\)"),
        (torch.zeros(3, 0, 64), r"got picture 2 of shape \(3, 0, 64\)"),
        (torch.linspace(-1, 1, 192).view(3, 8, 8), r"got picture 2 with values from -1 to 1 .*; give .* in \[0, 1\]"),
        (torch.full((3, 8, 8), torch.nan), "with values from nan to nan"),
        (torch.ones(3, 8, 8, dtype=torch.uint8), r"\(torch.uint8\); give floating-point values"),
    ],
)
def test_pictures_that_cannot_be_meant_are_refused(folder, picture, message):
    with pytest.raises(UsageError, match=message):
        match([noise(), picture], folder, fpr=0.05)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (torch.ones(3, 8, 8), "got 3 masks for 2 pictures; give a mask for every picture"),
        ([], "got 0 masks for 2 pictures"),
        (torch.ones(8, 8), "got 1 masks for 2 pictures"),
        ([torch.ones(8, 8), None], r"got a NoneType as mask 2; give a tensor \(h, w\)"),
        ([torch.ones(8, 8), torch.ones(1, 8, 8)], r"got mask 2 of shape \(1, 8, 8\)"),
        ([torch.ones(8, 8), torch.full((8, 8), 255.0)], "got mask 2 with values from 255 to 255"),
        ([torch.ones(8, 8), torch.ones(8, 12)], "got mask 2 of 12×8 for a picture of 64×64"),
    ],
)
def test_masks_that_do_not_fit_are_refused(folder, masks, message):
    with pytest.raises(UsageError, match=message):
        match([noise(), noise(1)], folder, masks=masks, fpr=0.05)


def test_a_mask_has_the_proportions_of_the_picture_as_it_is_shown(folder, tmp_path):
    picture = Image.new("RGB", (96, 64))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: shown as 64×96
    picture.save(tmp_path / "turned.jpg", exif=exif)
    picture.save(tmp_path / "wide.png")
    upright, wide = torch.ones(12, 8), torch.ones(8, 12)
    match([tmp_path / "turned.jpg", tmp_path / "wide.png", picture], folder, masks=[upright, wide, wide], fpr=0.05)
    for path, mask in ((tmp_path / "turned.jpg", wide), (tmp_path / "wide.png", upright), (picture, upright)):
        with pytest.raises(UsageError, match="give one with its proportions"):
            match(path, folder, masks=mask, fpr=0.05)
    # a picture of which the mask's pixels are no whole number of pixels
    match(torch.rand(3, 100, 65), folder, masks=torch.ones(12, 8), fpr=0.05)


def test_indexes_that_cannot_be_used_are_refused(folder, tmp_path):
    with pytest.raises(UsageError, match=r"no index in .*nowhere; make one with `cryptomnesia index build`"):
        match(noise(), tmp_path / "nowhere")
    with pytest.raises(UsageError, match="the index holds 40 pictures, too few to tell a match from chance"):
        match(noise(), folder)
    with pytest.raises(UsageError, match="give one between 0 and 1"):
        match(noise(), folder, fpr=1.5)


def test_the_package_exports_the_verb(pictures, folder):
    assert cryptomnesia.match is match
    save(pictures / "new.png", np.full((8, 8, 3), 0.5))
    assert len(cryptomnesia.match([pictures / "new.png"], folder, fpr=0.05)) == 1
