"""Emoji in six styles, from the packages in which they are published.

The packages are those of Iconify on npm, one JSON file of SVG texts each. They are looked for as Node.js does it: in
`node_modules` of the working directory, or of a folder above it. Only training and `proving-ground images` need them.
"""

import hashlib
import io
import json
import re
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from cryptomnesia.errors import UsageError

SIDE = 48
"""Side of a drawing in pixels, before it is placed."""


class Artist(NamedTuple):
    """A package of drawings: its name and version on npm, and the SHA-256 digest of its drawings."""

    package: str
    version: str
    sha256: str


ARTISTS = {
    "noto": Artist("noto", "1.2.9", "9eac6ef4e7ec122b6f0e7ac281d61008afdbc720d0ce861e398b939daaa347c6"),
    "classic": Artist("noto-v1", "1.2.5", "ce70d8aa90345cf389875c3571ecd245bd943401822a0c5a0f62336bf8487333"),
    "fluent": Artist("fluent-emoji", "1.2.7", "87f3336be6f46747d40d046a15ffa8b23809ff7a1a280b5d3521d3782fb85de7"),
    "flat": Artist("fluent-emoji-flat", "1.2.6", "f5f4cf457c0db2ad5a2e42e033e02e0c87d10e43d0164cfffb3bb84914970a63"),
    "twitter": Artist("twemoji", "1.2.5", "5d5d820790565b764f2728675d487c9ee4c1fc83916d8567d5aca8ba7527c242"),
    "firefox": Artist("fxemoji", "1.2.2", "d8ef67b94a32d0abcd314d1c35db56178eaa8fa8ad71130e312f3460e307c2bf"),
}
"""Word of the captions → package. NOTICE names the artists and their licences."""

THINGS = {
    "airplane": "airplane",
    "apple": "redapple",
    "balloon": "balloon",
    "banana": "banana",
    "bear": "bear",
    "bicycle": "bicycle",
    "bus": "bus",
    "cactus": "cactus",
    "camera": "camera",
    "candle": "candle",
    "car": "automobile",
    "cat": "cat",
    "cherries": "cherries",
    "crown": "crown",
    "dolphin": "dolphin",
    "doughnut": "doughnut",
    "elephant": "elephant",
    "fish": "fish",
    "frog": "frog",
    "ghost": "ghost",
    "grapes": "grapes",
    "guitar": "guitar",
    "hamburger": "hamburger",
    "heart": "redheart",
    "key": "key",
    "ladybug": "ladybeetle",
    "mushroom": "mushroom",
    "octopus": "octopus",
    "penguin": "penguin",
    "pineapple": "pineapple",
    "pumpkin": "jackolantern",
    "rocket": "rocket",
    "rose": "rose",
    "snail": "snail",
    "star": "star",
    "strawberry": "strawberry",
    "sunflower": "sunflower",
    "turtle": "turtle",
    "umbrella": "umbrella",
    "watermelon": "watermelon",
}
"""Word of the captions → name of the drawing in every package, without hyphens."""


@cache
def drawing(artist: str, thing: str) -> Image.Image:
    """What an artist made of a thing: mode RGBa (colours multiplied by opacity), `SIDE` pixels wide and high.

    Raises:
        UsageError: if resvg-py or the artist's package is not installed.
    """
    try:
        import resvg_py
    except ModuleNotFoundError:
        raise UsageError(
            "resvg-py draws the pictures of this ground and is not installed; "
            "install it with `pip install 'cryptomnesia[drawings]'`"
        ) from None
    twice = 2 * SIDE
    picture = resvg_py.svg_to_bytes(svg_string=_svg(_package(artist), THINGS[thing]), width=twice, height=twice)
    shown = Image.open(io.BytesIO(bytes(picture))).convert("RGBA").convert("RGBa")
    # a pixel is the mean of four; the few drawings that are not square become so
    return shown.resize((SIDE, SIDE), Image.Resampling.BOX)


def _svg(package: dict[str, Any], wanted: str) -> str:
    """An SVG file of one drawing of a package."""
    named = {_plain(name): name for name in package["icons"]}
    named |= {_plain(name): alias["parent"] for name, alias in package.get("aliases", {}).items()}
    icon = {**package, **package["icons"][named[wanted]]}
    left, top, width, height = (icon.get(key, 0) for key in ("left", "top", "width", "height"))
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {width} {height}" width="{width}" height="{height}">{icon["body"]}</svg>'
    )


def _plain(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name)


@cache
def _package(artist: str) -> dict[str, Any]:
    """The drawings of an artist.

    Raises:
        UsageError: if the package is not installed, or is of another version.
    """
    working = Path.cwd()
    inside = Path("node_modules", "@iconify-json", ARTISTS[artist].package, "icons.json")
    for folder in (working, *working.parents):
        if (folder / inside).is_file():
            found = (folder / inside).read_bytes()
            if hashlib.sha256(found).hexdigest() != ARTISTS[artist].sha256:
                raise UsageError(f"{folder / inside} is not of version {ARTISTS[artist].version}; run `{_install()}`")
            return json.loads(found)
    raise UsageError(f"{inside} is neither in {working} nor above it; run `{_install()}` here")


def _install() -> str:
    packages = " ".join(f"@iconify-json/{artist.package}@{artist.version}" for artist in ARTISTS.values())
    return f"npm install --no-save {packages}"
