"""Reads embeddings from JSON: lines, arrays or documents of objects, one object per row."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, Final

import msgspec
import numpy as np
from msgspec import Raw

from core.embedding_files.columns import Columns
from core.embedding_files.dynamodb_json import is_typed
from core.embedding_files.file_input import FileInput, open_input
from core.embedding_files.json_entries import DYNAMODB, Entry, Forms, entries
from core.embedding_files.rows import Batch, EmbeddingReader, Row, as_float32
from core.errors import FileError
from core.models import BadRow
from core.settings import Files

LINE_BYTES_MAX: Final = 1024 * 1024
"""The longest row; 4,096 numbers with all their digits take a tenth of it."""
_FORMS: Final = Forms(
    lists=DYNAMODB.lists
    | {b'"embeddings"', b'"vectors"', b'"points"', b'"objects"', b'"items"', b'"rows"', b'"data"'},
    maps=DYNAMODB.maps | {b'"result"'},
    supported=(
        "K9 imports Parquet, .npz, and JSON lines or arrays of objects with an id and a "
        "vector, in UTF-8 or UTF-16, or gzip"
    ),
)
"""DynamoDB's are included so that the message can name them; some of the others are K9's own."""
_HEAD_ENTRIES: Final = 20
_MEMBERS: Final = msgspec.json.Decoder(dict[str, Raw])
_NO_NUMBERS: Final = re.compile(rb"\s*\[\s*[\]{]")
"""A list whose name is that of the vectors only if no other row has another one."""
_TYPES: Final = {
    b'"': "text (whose number type is unknown, or which is not parsed)",
    b"{": "an object (of DynamoDB's types, sparse, or of several named vectors)",
}


@dataclass(frozen=True, slots=True)
class _Pass:
    """One pass over the file, whose first entries have been read."""

    source: FileInput
    entries: Iterator[Entry]
    decoder: Any


class JsonReader(EmbeddingReader):
    """Reads one JSON file."""

    unit = "bytes"

    def __init__(self, source: FileInput, columns: Columns, limits: Files) -> None:
        super().__init__(source)
        self._limits = limits
        self._columns = columns
        self._attributes = {f"attribute_{n}": name for n, name in enumerate(columns.attributes)}
        """Field of a decoded row → name of the attribute."""
        self._unseen = dict.fromkeys(columns.attributes)
        self._path = source.path
        self.units = source.size
        self._first_pass: _Pass | None = self._begin(source)

    def _begin(self, source: FileInput) -> "_Pass":
        ids, vectors = (
            frozenset(map(msgspec.json.encode, names))
            for names in (self._columns.id_names, self._columns.vector_names)
        )
        forms = msgspec.structs.replace(_FORMS, ids=ids, vectors=vectors)
        found = entries(source, LINE_BYTES_MAX, forms)
        head = list(islice(found, _HEAD_ENTRIES))
        return _Pass(source, chain(head, found), self._decoder(head))

    def _batches(self, rows_max: int) -> Iterator[Batch]:
        begun, self._first_pass = self._first_pass, None
        begun = begun or self._begin(open_input(self._path, self._limits, self.name))
        with begun.source as source:
            rows: list[Row] = []
            bad: list[BadRow] = []
            read = 0
            for entry in begun.entries:
                self._read(entry, begun.decoder, rows, bad)
                if len(rows) + len(bad) >= rows_max:
                    yield Batch(rows, bad, entry.end - read)
                    rows, bad, read = [], [], entry.end
            yield Batch(rows, bad, source.position - read)
        if self._unseen:
            self.notes.append(f"no row has {', '.join(map(repr, self._unseen))}")

    def _decoder(self, head: list[Entry]) -> Any:
        """A decoder of rows, for the names that the first entries have.

        Raises:
            FileError: none of them has the names, or all have a type that is not supported.
        """
        ids, vectors = self._columns.product_id, self._columns.vector
        problems: list[FileError | None] = []
        for entry in head:
            try:
                members = _MEMBERS.decode(entry.text)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                continue
            try:
                ids, vectors = self._names(members)
            except FileError as error:
                problems.append(error)
            else:
                problems = [None]
                if not _NO_NUMBERS.match(bytes(members[vectors])):
                    break
        if problems and problems[0] is not None:
            raise problems[0]
        line = msgspec.defstruct(
            "Line",
            [
                ("product_id", str | int),
                ("vector", list[float]),
                *((field, Any, None) for field in self._attributes),
            ],
            rename={
                "product_id": ids or "product_id",
                "vector": vectors or "vector",
                **self._attributes,
            },
        )
        return msgspec.json.Decoder(line)

    def _names(self, members: Mapping[str, Raw]) -> tuple[str, str]:
        if is_typed(members):
            raise FileError(
                f"{self.name}: is DynamoDB's JSON, which `k9 migrate --table embeddings` reads"
            )
        ids, vectors = self._columns.choose(list(members), self.name)
        of_ids, of_vectors = (bytes(members[name]).lstrip()[:1] for name in (ids, vectors))
        if of_ids == b"{":
            raise FileError(f"{self.name}: {ids!r} is an object; ids are text or integers")
        if of_ids == b"[":
            raise FileError(
                f"{self.name}: is an object of columns ({ids!r} is a list); write an object a row"
            )
        if of_vectors in _TYPES:
            raise FileError(
                f"{self.name}: {vectors!r} is {_TYPES[of_vectors]}; lists of numbers are read"
            )
        if bytes(members[vectors]).replace(b" ", b"").startswith(b"[["):
            raise FileError(
                f"{self.name}: {vectors!r} is a list of lists; one list of numbers a row is read"
            )
        return ids, vectors

    def _read(self, entry: Entry, decoder: Any, rows: list[Row], bad: list[BadRow]) -> None:
        if entry.problem is not None:
            bad.append(BadRow(entry.line, None, entry.problem))
            return
        try:
            decoded = decoder.decode(entry.text)
        except (msgspec.MsgspecError, RecursionError) as error:
            bad.append(BadRow(entry.line, None, " ".join(str(error).split())))
        except UnicodeDecodeError:
            bad.append(BadRow(entry.line, None, "is not UTF-8"))
        else:
            if isinstance(decoded.product_id, int) and not self.notes:
                self.notes.append(f"integer ids, as on line {entry.line}, are stored as text")
            vector = as_float32(np.array(decoded.vector))
            own = {
                name: value
                for field, name in self._attributes.items()
                if (value := getattr(decoded, field)) is not None
            }
            for name in self._unseen.keys() & own.keys():
                del self._unseen[name]
            attributes = own if self._attributes else None
            rows.append(Row(entry.line, str(decoded.product_id), vector, attributes))

    def close(self) -> None:
        """Closes the file; a pass that has begun closes it itself."""
        if self._first_pass is not None:
            self._first_pass.source.close()
