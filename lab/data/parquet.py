"""Tables of Parquet, as data hubs hand them out: the bytes of the pictures in one column, captions in others.

A picture cannot be read from such a file without those around it, so the bytes are unpacked into the cache once.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

from lab.data.caption import of_fields
from lab.data.collection import Collection, Entry, Record, files, stamps
from lab.data.source import CAPTION, BadSample
from lab.errors import BadData, Refused

ROWS = 64  # read at a time


class Parquet(Collection):
    """The file ``path``, or every ``.parquet`` file of that folder; what is not said here is of ``Collection``.

    Attributes:
        image: column of the pictures: bytes, or a structure with a field "bytes".
        caption: column of the captions: a text or a list of texts.
    """

    kind: Literal["parquet"] = "parquet"
    image: str = "image"
    caption: str = "caption"

    def state(self) -> Iterator[str]:
        yield repr((self.image, self.caption))
        path = self.root
        yield from stamps({path.name: path.stat()} if path.is_file() else self._tables())

    def entries(self) -> Iterator[Entry]:
        path = self.root
        for table in [path] if path.is_file() else [path / name for name in self._tables()]:
            for number, fields in enumerate(self._rows(table)):
                name = f"{table.name}:{number}"
                picture = fields.pop(self.image)
                data = picture.get("bytes") if isinstance(picture, dict) else picture
                if not isinstance(data, bytes):
                    yield self.entry(
                        Record(name, fault=BadSample("no image", "the cell holds no bytes")), tuple, fields
                    )
                    continue
                spoken = {**fields, CAPTION: None, "captions": fields[self.caption]}
                yield self.entry(Record(name), partial(of_fields, spoken, self.captions), fields, data)

    def _tables(self) -> Mapping[str, Any]:
        found = {name: state for name, state in files(self.root).items() if name.endswith(".parquet")}
        if not found:
            raise Refused(f"data.path={self.path}: holds no .parquet file")
        return found

    def _rows(self, path: Path) -> Iterator[dict[str, Any]]:
        import pyarrow
        from pyarrow import parquet

        try:
            with parquet.ParquetFile(path) as table:
                names = table.schema_arrow.names
                if missing := {self.image, self.caption} - set(names):
                    remedy = f"set data.image and data.caption to two of {', '.join(names)}"
                    raise Refused(f"{path}: has no column {min(missing)}; {remedy}")
                for batch in table.iter_batches(ROWS):
                    yield from batch.to_pylist()
        except pyarrow.ArrowException as error:
            raise BadData(f"{path}: is no readable Parquet file ({error})") from None
