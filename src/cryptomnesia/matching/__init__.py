"""Which training image is it? Descriptors of pictures, an index of them on disk, exact nearest neighbours."""

from cryptomnesia.matching.descriptors import Descriptor, Tiles, square
from cryptomnesia.matching.index import ImageIndex
from cryptomnesia.matching.reproduction import Matches
from cryptomnesia.matching.search import Neighbours
from cryptomnesia.matching.sscd import SSCD

__all__ = ["SSCD", "Descriptor", "ImageIndex", "Matches", "Neighbours", "Tiles", "square"]
