"""Which training image is it? Descriptors of pictures, an index of them on disk, and the search for the nearest.

The verb is `match`, in matched.py.
"""

from cryptomnesia.decoding import Readings
from cryptomnesia.matching.building import Changes
from cryptomnesia.matching.descriptors import Descriptor, Tiles
from cryptomnesia.matching.duplicates import Cluster
from cryptomnesia.matching.index import ImageIndex
from cryptomnesia.matching.reproduction import Match, Matches
from cryptomnesia.matching.search import Neighbours
from cryptomnesia.matching.sscd import SSCD

__all__ = [
    "SSCD",
    "Changes",
    "Cluster",
    "Descriptor",
    "ImageIndex",
    "Match",
    "Matches",
    "Neighbours",
    "Readings",
    "Tiles",
]
