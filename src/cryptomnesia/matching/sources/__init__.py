"""Where training pictures lie: folders, tar shards, tables of Parquet and Arrow, or an iterable in Python.

A source yields items, one after the other: a picture with its name and caption, or something that is left out, with the
reason. Names are stable, so that an index can be continued: `folder/picture.jpg`, `shard.tar/key.jpg` for a picture in
a tar file, `part.parquet#7` for one in a row of a table.
"""

from cryptomnesia.matching.sources.files import FileSource, check_source, exists
from cryptomnesia.matching.sources.items import (
    NOT_PICTURES,
    Item,
    Source,
    Unchanged,
    as_text,
    by_reason,
    ordered,
)
from cryptomnesia.matching.sources.iterables import IterableSource, source_of
from cryptomnesia.matching.sources.opening import content_of

__all__ = [
    "NOT_PICTURES",
    "FileSource",
    "Item",
    "IterableSource",
    "Source",
    "Unchanged",
    "as_text",
    "by_reason",
    "check_source",
    "content_of",
    "exists",
    "ordered",
    "source_of",
]
