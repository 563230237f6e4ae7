import io

import numpy as np
import pytest
import torch
from PIL import Image

from cryptomnesia.images import middle, pixels, png, square


def test_a_tensor_and_its_picture_are_the_same_square():
    array = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    tensor = torch.from_numpy(array).permute(2, 0, 1).float() / 255
    torch.testing.assert_close(square(tensor, 32), square(Image.fromarray(array), 32), atol=1 / 255, rtol=0)
    # area means
    torch.testing.assert_close(square(tensor, 32)[:, 0, 0], tensor[:, :2, :2].mean((1, 2)), atol=1 / 255, rtol=0)


@pytest.mark.parametrize("size", [(96, 64), (64, 96)])
def test_the_middle_square_is_taken(size):
    picture = Image.new("RGB", size, "red")
    picture.paste(Image.new("RGB", (64, 64), "blue"), ((size[0] - 64) // 2, (size[1] - 64) // 2))
    taken = square(picture, 32)
    assert taken[2].min() == 1
    assert taken[0].max() == 0
    assert middle(torch.zeros(2, *size)).shape == (2, 64, 64)


def test_transparent_parts_become_white_and_palettes_are_read():
    clear = Image.new("RGBA", (32, 32), (255, 0, 0, 0))
    assert square(clear, 32).min() == 1
    assert square(Image.new("P", (32, 32)), 32).shape == (3, 32, 32)
    assert square(Image.new("L", (8, 8), 51), 32).mean().item() == pytest.approx(0.2)


def test_a_camera_s_rotation_is_undone():
    picture = Image.new("RGB", (32, 32))
    picture.paste("white", (0, 0, 32, 16))
    turned = picture.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90° clockwise
    held = io.BytesIO()
    turned.save(held, "PNG", exif=exif)
    with Image.open(held) as shown:
        torch.testing.assert_close(square(shown, 32), square(picture, 32))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_pictures_of_any_precision_are_read(dtype):
    """A pipeline in bfloat16 returns its pictures in bfloat16, which NumPy does not know."""
    picture = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = (picture.double() * 255).round().byte().permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(pixels(picture), expected)
    torch.testing.assert_close(square(picture, 8), square(Image.fromarray(expected), 8))
    with Image.open(io.BytesIO(png(picture))) as stored:
        np.testing.assert_array_equal(np.array(stored), expected)
