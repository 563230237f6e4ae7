"""Every kind of picture file in all readings, against what a trainer's own conversion gives."""

import io
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from cryptomnesia.decoding import Readings, opened, squares
from picture_files import encoded, picture, png_of

SIDE = 16


def read(content, wanted=None):
    with opened(content) as image:
        return squares(image, SIDE, wanted or Readings(), content)


def small(image):
    """The picture in eight bits, as any reading has to give it."""
    (only,) = squares(image, SIDE).values()
    return only


def grey(seed=0):
    return picture(seed).convert("L")


def deep(bits):
    """A grey picture whose values fill `bits` bits, (48, 48) uint16."""
    values = np.asarray(grey()).astype(np.float64) / 255
    values = (values - values.min()) / (values.max() - values.min())
    return (values * (2**bits - 1)).round().astype(np.uint16)


def eight(values, top):
    return small(Image.fromarray((values / top * 255).round().astype(np.uint8)))


def near(found, expected, most=2):
    return any(np.abs(one.astype(int) - expected).max() <= most for one in found.values())


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "big-endian TIFF", "32-bit TIFF", "JPEG2000"])
def test_integers_are_scaled_by_the_depth_that_holds_them(bits, kind):
    values = deep(bits)
    kinds = {"big-endian TIFF": values.astype(">u2"), "32-bit TIFF": values.astype(np.int32)}
    content = encoded(Image.fromarray(kinds.get(kind, values)), kind.split()[-1])
    found = read(content)
    assert near(found, eight(values, 2**bits - 1))
    # the largest range that is possible is a reading too, if something is to be seen in it
    assert near(found, eight(values, 2**16 - 1)) == (bits >= 12)
    assert all(one.max() - one.min() >= 8 for one in found.values())


def test_zero_may_be_white_and_a_trainer_may_not_have_known_it():
    values = deep(16)
    found = read(encoded(Image.fromarray(values), "TIFF", tiffinfo={262: 0}))
    assert next(iter(found)) == "0 is white"
    assert np.abs(found["0 is white"].astype(int) - eight(65535 - values, 65535)).max() <= 2
    assert near(found, eight(values, 65535))


@pytest.mark.parametrize("kind", ["TIFF", "compressed TIFF", "PNG"])
@pytest.mark.parametrize("bits", [12, 16])
def test_sixteen_bit_colours_are_scaled_too(bits, kind):
    colours = (np.asarray(picture(3)).astype(np.float64) / 255 * (2**bits - 1)).round().astype(np.uint16)
    content = png_of(colours, 2) if kind == "PNG" else tiff_of(colours, kind != "TIFF")
    assert near(read(content), small(picture(3)))


def tiff_of(values, compressed, planes=False):
    """A TIFF file of sixteen bits a channel, which Pillow reads but does not write."""
    tags = {
        256: values.shape[1],
        257: values.shape[0],
        259: 8 if compressed else 1,
        262: 2,
        277: 3,
        278: values.shape[0],
        284: 2 if planes else 1,
    }
    data = (np.moveaxis(values, 2, 0) if planes else values).astype("<u2").tobytes()
    data = zlib.compress(data) if compressed else data
    size = 8 + 2 + 12 * (len(tags) + 3) + 4
    entries = {tag: (3, 1, value) for tag, value in tags.items()}
    entries[258] = (3, 3, size)
    entries[273] = (4, 1, size + 6)
    entries[279] = (4, 1, len(data))
    if planes:
        entries[273] = (4, 3, size + 6)
    out = b"II" + (42).to_bytes(2, "little") + (8).to_bytes(4, "little") + len(entries).to_bytes(2, "little")
    for tag, (kind, count, value) in sorted(entries.items()):
        out += tag.to_bytes(2, "little") + kind.to_bytes(2, "little") + count.to_bytes(4, "little")
        out += value.to_bytes(4, "little")
    return out + bytes(4) + np.array([16, 16, 16], dtype="<u2").tobytes() + data


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0, 255), (-1, 1), (0, 65535), (0, 1e-4), (-1024, 3071), (5000, 5010), (0, 1e9)]
)
def test_floating_point_pictures_are_scaled_by_their_range(low, high):
    unit = deep(16) / 65535
    content = encoded(Image.fromarray((low + unit * (high - low)).astype(np.float32)), "TIFF")
    assert near(read(content), eight(unit, 1))


def test_a_few_values_above_the_range_do_not_make_a_picture_dark():
    unit = (deep(16) / 65535).astype(np.float32)
    bright = unit.copy()
    bright[0, 0], bright[0, 1] = 7, np.nan
    unit[0, 0], unit[0, 1] = 1, 0
    assert near(read(encoded(Image.fromarray(bright), "TIFF")), eight(unit, 1))


def test_pictures_without_a_usual_range_or_a_finite_value():
    signed = Image.fromarray((deep(16).astype(np.int32) - 30_000) * 4)
    assert near(read(encoded(signed, "TIFF")), eight(deep(16), 65535))
    (constant,) = read(encoded(Image.fromarray(np.full((32, 32), 32768, dtype=np.uint16)))).values()
    assert np.unique(constant).tolist() == [128]
    with pytest.raises(ValueError, match="finite"):
        read(encoded(Image.fromarray(np.full((8, 8), np.nan, dtype=np.float32)), "TIFF"))


def test_a_picture_in_the_usual_format_has_one_reading():
    for kind in ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "JPEG2000", "TIFF", "PPM"):
        assert list(read(encoded(picture(0), kind))) == [""], kind
    opaque = picture(0).convert("RGBA")
    assert list(read(encoded(opaque))) == [""]
    upright = Image.Exif()
    upright[0x0112] = 1
    assert list(read(encoded(picture(0), exif=upright))) == [""]


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "LAB"])
def test_other_colours_become_red_green_and_blue(mode):
    image = picture(4)
    if mode == "LAB":
        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        other = ImageCms.applyTransform(image, ImageCms.buildTransform(*profiles, "RGB", "LAB"))
    else:
        other = image.convert(mode)
    (found,) = read(encoded(other, "TIFF")).values()
    expected = small(image.convert(mode).convert("RGB")) if mode != "LAB" else small(image)
    assert np.abs(found.astype(int) - expected).mean() < 4
    assert found.max() - found.min() > 64


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_read_in_three_ways(mode):
    image = picture(5).convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    if mode == "P":
        image = image.quantize(64)
        content = encoded(image)
    else:
        content = encoded(image.convert(mode))
    found = read(content)
    assert list(found) == ["alpha on white", "alpha on black", "alpha dropped"]
    with Image.open(io.BytesIO(content)) as stored:
        clear = stored.convert("RGBA")
    for ground in ("white", "black"):
        below = Image.new("RGBA", clear.size, ground)
        expected = small(Image.alpha_composite(below, clear).convert("RGB"))
        np.testing.assert_array_equal(found[f"alpha on {ground}"], expected)
        assert list(read(content, Readings(alpha=ground))) == [""]
    np.testing.assert_array_equal(found["alpha dropped"], small(clear.convert("RGB")))


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_rotation_in_exif_is_applied_and_not(orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    content = encoded(picture(6).resize((64, 48)), kind, exif=exif, **options)
    found = read(content)
    assert list(found) == ["rotated by EXIF", "not rotated"]
    with Image.open(io.BytesIO(content)) as stored:
        stored.load()
        raw = Image.fromarray(np.asarray(stored))
        upright = ImageOps.exif_transpose(stored)
        upright = Image.fromarray(np.asarray(upright))
    assert np.abs(found["rotated by EXIF"].astype(int) - small(upright)).max() <= 1
    assert np.abs(found["not rotated"].astype(int) - small(raw)).max() <= 1
    np.testing.assert_array_equal(read(content, Readings(exif="ignore"))[""], found["not rotated"])
    np.testing.assert_array_equal(read(content, Readings(exif="apply"))[""], found["rotated by EXIF"])


def test_rotation_and_transparency_are_read_in_all_combinations():
    image = picture(7).convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    exif = Image.Exif()
    exif[0x0112] = 3
    found = read(encoded(image, exif=exif))
    assert len(found) == 6
    assert "alpha on black, not rotated" in found


def test_broken_exif_is_no_rotation():
    content = encoded(picture(8), "JPEG", exif=b"Exif\0\0nonsense")
    assert list(read(content)) == [""]


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_deep_grey_with_transparency_is_scaled_too(bits):
    values = np.stack([deep(bits), np.full_like(deep(bits), 65535)], axis=-1)
    assert near(read(png_of(values, 4)), eight(deep(bits), 2**bits - 1))


def test_thirty_two_bits_without_a_sign_are_not_negative():
    content = encoded(Image.fromarray(deep(16).astype(np.int32) * 65537), "TIFF")
    # Pillow writes a sign (2) into the tag of the format (339), here it becomes none (1)
    signed = (339).to_bytes(2, "little") + (3).to_bytes(2, "little") + (1).to_bytes(4, "little") + b"\2\0"
    assert signed in content
    assert near(read(content.replace(signed, signed[:-2] + b"\1\0")), eight(deep(16), 65535))


def test_sixteen_bits_in_separate_planes_are_refused():
    colours = np.asarray(picture(3)).astype(np.uint16) * 257
    with pytest.raises(ValueError, match="separate planes"):
        read(tiff_of(colours, False, planes=True))


@pytest.mark.parametrize("orientation", range(2, 9))
def test_the_rotation_of_a_tiff_file_is_applied_and_not(orientation):
    image = picture(6).resize((64, 48))
    content = encoded(image, "TIFF", tiffinfo={0x0112: orientation})
    found = read(content)
    assert list(found) == ["rotated by EXIF", "not rotated"]
    assert np.abs(found["not rotated"].astype(int) - small(image)).max() <= 1
    with opened(content) as stored:
        stored.load()
        assert np.abs(found["rotated by EXIF"].astype(int) - small(stored)).max() <= 1
    assert len(read(content, Readings(exif="apply"))) == 1


def test_pictures_in_memory_are_read_like_files():
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(io.BytesIO(encoded(picture(9), exif=exif))) as stored:
        assert list(squares(stored.copy(), SIDE, Readings())) == ["rotated by EXIF", "not rotated"]
    assert near(squares(Image.fromarray(deep(12)), SIDE), eight(deep(12), 4095))
