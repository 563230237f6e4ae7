"""Where training pictures lie: folders, tar shards, tables of Parquet and Arrow, or an iterable in Python.

A source yields parts, one after the other: an item, which is a picture with its name and caption, or something that is
left out, with the reason; or a shard or table, whose items are read by whoever describes its pictures. Names are
stable, so that an index can be continued: `folder/picture.jpg`, `shard.tar/key.jpg` for a picture in a tar file,
`part.parquet#7` for one in a row of a table.
"""

from cryptomnesia.matching.sources.files import FileSource, check_source, exists, unpacked
from cryptomnesia.matching.sources.items import (
    AGAIN,
    NOT_PICTURES,
    Item,
    Packed,
    Source,
    Span,
    Unchanged,
    as_text,
    by_reason,
    ordered,
)
from cryptomnesia.matching.sources.iterables import IterableSource, source_of
from cryptomnesia.matching.sources.opening import content_of

__all__ = [
    "AGAIN",
    "NOT_PICTURES",
    "FileSource",
    "Item",
    "IterableSource",
    "Packed",
    "Source",
    "Span",
    "Unchanged",
    "as_text",
    "by_reason",
    "check_source",
    "content_of",
    "exists",
    "ordered",
    "source_of",
    "unpacked",
]
