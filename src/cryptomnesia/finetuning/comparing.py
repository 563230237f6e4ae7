"""Which images are copies of a training picture, given what the base model makes of the same captions.

The base model was not trained on the pictures, so nothing that it makes is a copy. A caption may fix much of a
picture, though. Therefore an image is compared with a picture *relative to references*: what the base makes under the
captions of the training, and the other training pictures. Pictures and images are compared at 64 × 64 pixels, as a
whole and in nine overlapping quarters, because often a part alone is copied.

By pixels the distance d is the tiled one of Carlini et al. (2023), `cryptomnesia.matching.distances`. With u the
usual distance and r the smallest distance of a reference, the score is log(min(u/2, r)/d). The usual distance is the
smallest of three medians: of all references, of those under the picture's own caption, and of the other training
pictures. So a copy is within half the usual distance, as in `cryptomnesia.matching.reproduction`, and nearer than
every reference.

By edges the similarity e is the correlation of `cryptomnesia.matching.edges`, which recolouring and fading do not fool.
With m the largest similarity of a reference, the score is (e − m)/(1 − m) − 1/3. So a copy closes a third of the gap
between the most similar reference and the picture itself.

The score of an image as a whole is the larger of both. A quarter shows little, and two pictures have similar ones by
chance: its score is the smaller of both, and quarters in which next to nothing is to be seen do not count. A copy has a
score above 0, as a whole or in its best quarter.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cryptomnesia.finding.pictures import Picture
from cryptomnesia.finding.restoring import ACROSS, HALF, PLAIN, SIDE, Gallery
from cryptomnesia.matching.edges import correlation

GAP = 1 / 3
"""Share of the gap between the most similar reference and the picture itself that a copy by edges closes."""

SAME = 0.25
"""Share of the median distance below which another picture is a copy of the picture, and no reference."""

_HALF = ACROSS // 2

PARTS = ((0, 0, ACROSS), *((row, column, _HALF) for row in range(_HALF + 1) for column in range(_HALF + 1)))
"""The whole picture and its overlapping quarters: first row and column of tiles, and tiles along a side."""

_LEAST = 1e-6


@dataclass(frozen=True)
class Nearness:
    """How near images are to a picture.

    Attributes:
        scores: of the whole, and of the best quarter, (n, 2); -∞ where no quarter counts.
        by: n times `pixels` or `edges`, by which the whole is nearer.
        quarters: the best quarter, n times (top, left, bottom, right) as shares of the picture.
    """

    scores: np.ndarray
    by: Sequence[str]
    quarters: Sequence[tuple[float, float, float, float]]


@dataclass(frozen=True)
class Original:
    """A picture that images are compared with.

    Attributes:
        picture: a gallery of the one.
        near: the largest distance of a copy, for every part, (parts,).
        similar: the similarity of the most similar reference, for every part, (parts,).
    """

    picture: Gallery
    near: np.ndarray
    similar: np.ndarray

    @classmethod
    def of(cls, picture: Gallery, others: Gallery, made: Gallery, alike: np.ndarray) -> "Original":
        """A picture with its references.

        Args:
            picture: a gallery of the one.
            others: other training pictures that are no copies of it.
            made: images of the base model; there is at least one reference.
            alike: which of these were made under the picture's caption, (n,) bool.
        """
        from_others, from_made = distances(picture, others), distances(picture, made)
        found = np.concatenate([from_others, from_made])
        medians = [np.median(rows, axis=0) for rows in (found, from_others, from_made[alike]) if len(rows)]
        near = np.maximum(np.minimum(HALF * np.min(medians, axis=0), found.min(axis=0)), _LEAST)
        similar = np.concatenate([similarities(picture, others), similarities(picture, made)]).max(axis=0)
        return cls(picture, near, similar)

    def nearness(self, images: Gallery) -> Nearness:
        """How near images are."""
        both = np.stack([self._by_pixels(images), self._by_edges(images)])
        whole, quarters = both[:, :, 0], both[:, :, 1:].min(axis=0)
        quarters[:, ~self._seen] = -np.inf
        best = quarters.argmax(axis=1)
        return Nearness(
            scores=np.stack([whole.max(axis=0), quarters.max(axis=1)], axis=1),
            by=[("pixels", "edges")[kind] for kind in whole.argmax(axis=0)],
            quarters=[_shares(PARTS[1 + part]) for part in best],
        )

    def _by_pixels(self, images: Gallery) -> np.ndarray:
        return np.log(self.near / np.maximum(distances(self.picture, images), _LEAST))

    def _by_edges(self, images: Gallery) -> np.ndarray:
        found = similarities(self.picture, images)
        return (found - self.similar) / np.maximum(1 - self.similar, _LEAST) - GAP

    @cached_property
    def _seen(self) -> np.ndarray:
        """Whether something is to be seen in every quarter of the picture."""
        return np.array([_contrast(self.picture.tiles[0, torch.from_numpy(inside)]) >= PLAIN for inside in _TILES[1:]])


def _contrast(tiles: Tensor) -> float:
    """The standard deviation of the pixels of tiles (T, P) from their mean colour."""
    colours = tiles.unflatten(1, (3, -1))
    return float((colours - colours.mean(dim=(0, 2), keepdim=True)).square().mean().sqrt())


def distances(picture: Gallery, images: Gallery) -> np.ndarray:
    """The distances of images from a picture in every part, (n, parts), of values in [0, 1]."""
    tiles = (images.tiles - picture.tiles[0]).square_().mean(dim=2).sqrt_().numpy()
    return np.stack([tiles[:, inside].max(axis=1) for inside in _TILES], axis=1)


def similarities(picture: Gallery, images: Gallery) -> np.ndarray:
    """The similarities of the edges of images to those of a picture in every part, (n, parts), in [-1, 1]."""
    return np.stack([correlation(images.edges, picture.edges[0], inside) for inside in _PIXELS], axis=1)


def originals(
    pictures: Gallery, captions: Sequence[str], others: Gallery, made: Gallery, made_under: Sequence[str]
) -> list[Original]:
    """Pictures with their references.

    Args:
        pictures: that images are compared with.
        captions: one per picture.
        others: further pictures of the same kind; those that are copies of a picture are left out of its references.
        made: images that the base model made.
        made_under: their captions.
    """
    found, every = [], Gallery.joined([pictures, others])
    for row, caption in enumerate(captions):
        picture = pictures.rows([row])
        whole, from_made = distances(picture, every)[:, 0], distances(picture, made)[:, 0]
        different = whole > SAME * np.median(np.concatenate([whole, from_made]))
        different[row] = False
        alike = np.array([other == caption for other in made_under], dtype=bool)
        found.append(Original.of(picture, every.rows(np.flatnonzero(different).tolist()), made, alike))
    return found


def gallery_of(pictures: Sequence[Picture], size: tuple[int, int]) -> Gallery:
    """The gallery of pictures, fitted to the size of a model's images, height and width in pixels."""
    return Gallery.of(np.stack([picture.fitted(*size) for picture in pictures]))


def small(images: np.ndarray) -> np.ndarray:
    """Images (n, H, W, 3) uint8 at the size at which they are compared, (n, SIDE, SIDE, 3) uint8."""
    if images.shape[1:3] == (SIDE, SIDE):
        return images
    return np.stack([np.asarray(Image.fromarray(one).resize((SIDE, SIDE), Image.Resampling.BOX)) for one in images])


def spread(images: np.ndarray) -> float | None:
    """The mean distance between images (n, H, W, 3) uint8 of one caption, None for fewer than two."""
    if len(images) < 2:
        return None
    gallery = Gallery.of(images)
    found = [distances(gallery.rows([row]), gallery)[row + 1 :, 0] for row in range(len(images) - 1)]
    return float(np.concatenate(found).mean())


def _tiles_of(part: tuple[int, int, int]) -> np.ndarray:
    """Which tiles lie in a part, (tiles,) bool."""
    row, column, side = part
    inside = np.zeros((ACROSS, ACROSS), dtype=bool)
    inside[row : row + side, column : column + side] = True
    return inside.ravel()


def _shares(part: tuple[int, int, int]) -> tuple[float, float, float, float]:
    row, column, side = part
    return row / ACROSS, column / ACROSS, (row + side) / ACROSS, (column + side) / ACROSS


_TILES = [_tiles_of(part) for part in PARTS]
_PIXELS = [np.kron(inside.reshape(ACROSS, ACROSS), np.ones((SIDE // ACROSS,) * 2)) > 0 for inside in _TILES]
