"""Which training image is it? Descriptors of pictures, an index of them on disk, and the search for the nearest.

The verb is `match`, in matched.py.
"""

from cryptomnesia.matching.descriptors import Descriptor, Tiles
from cryptomnesia.matching.index import ImageIndex
from cryptomnesia.matching.reproduction import Match, Matches
from cryptomnesia.matching.search import Neighbours
from cryptomnesia.matching.sscd import SSCD

__all__ = ["SSCD", "Descriptor", "ImageIndex", "Match", "Matches", "Neighbours", "Tiles"]
