"""Packages of simple drawings in the place of the artists' emoji, which are not in the repository."""

import hashlib
import json

import pytest

from cryptomnesia.proving_ground import sprites
from cryptomnesia.proving_ground.ground import ground_of

NAMES = {"redapple": "red-apple", "jackolantern": "jack-o-lantern", "redheart": "heart-suit"}
"""Of the things whose name in the packages has hyphens; the heart has it as an alias alone."""

OUTLINES = (
    '<circle cx="16" cy="16" r="15" {}/>',
    '<rect x="2" y="4" width="28" height="24" rx="6" {}/>',
    '<path d="M16 1 L31 31 L1 31 Z" {}/>',
    '<path d="M16 0 L32 16 L16 32 L0 16 Z" {}/>',
)


def body(artist, thing):
    """A shape with spots that no plain ground is alike, as SVG; colours, shape and spots differ by artist and thing."""
    bits = hashlib.sha256(f"{artist} {thing}".encode()).digest()
    ground, spots = bits[1:4].hex(), bytes((channel + 128) % 256 for channel in bits[1:4]).hex()
    outline = OUTLINES[bits[0] % len(OUTLINES)].format(f'fill="#{ground}"')
    places = [(12, 12 + bits[4] % 5), (20, 14 + bits[5] % 5), (13 + bits[6] % 7, 22)]
    return outline + "".join(f'<circle cx="{x}" cy="{y}" r="3.5" fill="#{spots}"/>' for x, y in places)


def package(artist):
    """What one artist's file holds."""
    icons = {NAMES.get(name, name): {"body": body(artist, thing)} for thing, name in sprites.THINGS.items()}
    icons["banana"] |= {"width": 40, "left": -4}
    return {"icons": icons, "aliases": {"red-heart": {"parent": "heart-suit"}}, "width": 32, "height": 32}


@pytest.fixture(scope="session")
def packages(tmp_path_factory):
    """A folder with a package of every artist, as npm would have installed it."""
    folder = tmp_path_factory.mktemp("packages")
    for artist, about in sprites.ARTISTS.items():
        file = folder / "node_modules" / "@iconify-json" / about.package / "icons.json"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(package(artist)), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def drawn(packages):
    """The working directory is the folder of these packages, whose digests are taken for the artists'."""
    with pytest.MonkeyPatch.context() as patch:
        for artist, about in sprites.ARTISTS.items():
            file = packages / "node_modules" / "@iconify-json" / about.package / "icons.json"
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            patch.setitem(sprites.ARTISTS, artist, about._replace(sha256=digest))
        patch.chdir(packages)
        forget()
        yield packages
        forget()


@pytest.fixture(scope="module")
def drawings(drawn):
    """The ground of drawings, with these drawings."""
    return ground_of("drawings")


@pytest.fixture(scope="module")
def planted(drawings):
    """Its concepts."""
    return drawings.plant(0)


def forget():
    """Drawings that were read are read again."""
    sprites.drawing.cache_clear()
    sprites._package.cache_clear()
