from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from cryptomnesia import Located
from cryptomnesia.calibration import ReferenceMaps
from cryptomnesia.detection import Finding
from cryptomnesia.images import pixels
from cryptomnesia.report.panel import SIDE, overlay, panel, write_maps, write_panel
from cryptomnesia.verdicts import Verdict

VERDICT = Verdict(0, "a caption", "drift", 0.01, 3.0, 0.004, True, 2, "drift 3 has p = 0.004 ≤ 0.01")


def test_pixels_round_and_clamp():
    image = torch.tensor([0.0, 0.5, 2.0]).view(3, 1, 1)
    assert pixels(image).tolist() == [[[0, 128, 255]]]


def test_the_overlay_is_brightest_where_the_map_is_highest():
    heat = torch.zeros(4, 4)
    heat[0, 0] = 10.0
    drawn = overlay(torch.full((3, 16, 16), 0.5), heat).mean(axis=2)
    assert drawn[:2, :2].min() > drawn[8:, 8:].max()


def test_an_empty_map_can_be_drawn():
    assert overlay(torch.zeros(3, 16, 16), torch.zeros(4, 4)).shape == (16, 16, 3)


def test_places_where_a_map_is_nan_get_the_lowest_colour():
    heat = torch.ones(4, 4)
    heat[2:] = torch.nan
    holes = torch.ones(4, 4)
    holes[2:] = 0
    image = torch.full((3, 16, 16), 0.5)
    assert (overlay(image, heat) == overlay(image, holes)).all()


def test_a_panel_holds_pictures_and_masks_side_by_side():
    sheet = panel(
        [("generated", np.zeros((64, 64, 3), np.uint8)), ("mask", np.full((64, 64), 255, np.uint8))], "title " * 100
    )
    assert sheet.width == 2 * SIDE + 4
    left, right = (np.asarray(sheet)[-SIDE:, at][1:-1, 1:-1] for at in (slice(SIDE), slice(-SIDE, None)))
    assert left.max() == 0
    assert right.min() == 255
    # a frame, so that white is seen on white
    assert {tuple(pixel) for pixel in np.asarray(sheet)[-1, -SIDE:]} == {(160, 160, 160)}


def test_a_map_is_followed_by_its_mask_where_there_is_one(tmp_path):
    maps = {"first": torch.zeros(8, 8), "second": torch.rand((8, 8), generator=torch.Generator().manual_seed(0))}
    maps["first"][:4] = 2.0
    rows = torch.rand((30, 8, 8), generator=torch.Generator().manual_seed(1))
    masks = {"first": ReferenceMaps(rows[:10], rows[10:]).mask(maps["first"][None]).image(0)}
    write_maps(tmp_path / "a.png", Located("a caption", 3, torch.zeros(3, 16, 16), maps, masks=masks))
    with Image.open(tmp_path / "a.png") as drawn:
        assert drawn.width == 4 * (SIDE + 4) - 4
        mask = np.asarray(drawn)[-SIDE:, 2 * (SIDE + 4) : 2 * (SIDE + 4) + SIDE]
    assert mask[1 : SIDE // 2, 1:-1].min() == 255
    assert mask[SIDE // 2 : -1, 1:-1].max() == 0
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize(
    ("action", "instead", "mapped", "more", "pictures"),
    [
        ("none", False, False, 0, 1),
        ("none", False, True, 0, 2),
        ("mitigated", True, True, 0, 3),
        ("withheld", False, True, 2, 5),
    ],
)
def test_a_panel_shows_what_a_finding_has(tmp_path, action, instead, mapped, more, pictures):
    image = torch.full((3, 16, 16), 0.5)
    finding = Finding(
        prompt="a caption",
        seed=3,
        verdict=replace(VERDICT, action=action),
        image=image,
        trajectory=None,
        located=Located("a caption", 3, image, {"collapse": torch.ones(4, 4)}) if mapped else None,
        instead=image if instead else None,
    )
    write_panel(tmp_path / "a.png", finding, [("truth", np.zeros((8, 8), np.uint8))] * more)
    with Image.open(tmp_path / "a.png") as drawn:
        assert drawn.width == pictures * (SIDE + 4) - 4
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]
