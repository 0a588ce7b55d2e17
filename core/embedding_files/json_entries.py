"""Splits files of JSON rows into entries: lines, arrays, documents, and DynamoDB's replies.

No file is in memory as a whole, and a bad entry does not affect the next: entries are split by
brackets and quotes alone, before they are parsed. The document around the items of a DynamoDB reply
or request is skipped; `dynamodb_json` unwraps the single item.
"""

import re
from collections.abc import Generator, Iterator
from typing import Final

import msgspec

from core.embedding_files.file_input import TEXT, FileInput
from core.embedding_files.json_scanner import JsonScanner, MalformedError
from core.errors import FileError

ENTRY_BYTES_MAX: Final = 16 * 1024 * 1024
"""A DynamoDB item has up to 400 KB, which may be twenty times as much in indented JSON."""
_REQUESTS: Final = re.compile(rb'\[\s*\{\s*"(?:PutRequest|DeleteRequest)"\s*:')
_OBJECTS: Final = re.compile(rb"\[\s*[\]{]")
_NO_OBJECTS: Final = re.compile(rb"\[\s*\]")
_CONTINUATIONS: Final = {b'"NextToken"', b'"LastEvaluatedKey"', b'"UnprocessedKeys"'}
_EMPTY: Final = {b"null", b"{}", b'""'}
_NOT_OBJECTS: Final = {b"[": "arrays", b'"': "strings"} | dict.fromkeys(
    (b"%c" % digit for digit in b"-0123456789"), "numbers"
)
"""First bytes of array elements that are not rows."""
_HEAD_BYTES: Final = 4096
_SHOWN: Final = 40


class Forms(msgspec.Struct, frozen=True):
    """The documents that contain rows, and are not rows themselves."""

    lists: frozenset[bytes]
    """Names, in quotes, of members that are arrays of rows or of wrapped rows."""
    maps: frozenset[bytes]
    """Names of members whose own members, of any name, are such arrays."""
    supported: str
    """Describes the supported formats, for the error of another one."""
    ids: frozenset[bytes] = frozenset()
    """Names of members that only a row has: an object with one is a row, whatever else it has."""
    vectors: frozenset[bytes] = frozenset()
    """Names of members that make an object a row if all of its arrays of rows are empty."""


DYNAMODB: Final = Forms(
    lists=frozenset({b'"Items"', b'"TransactItems"', b'"Records"', b'"Responses"'}),
    maps=frozenset({b'"Responses"', b'"RequestItems"', b'"UnprocessedItems"'}),
    supported=(
        "`k9 migrate` reads JSON: arrays, lines or documents of rows, plain or in DynamoDB's "
        "types, also as scan, query, get-item, batch-write-item or an export to S3 have them, in "
        "UTF-8 or UTF-16, or gzip"
    ),
)
"""Replies and requests of DynamoDB."""


class Entry(msgspec.Struct, frozen=True):
    """One entry of the file, not yet parsed."""

    number: int
    """From 1."""
    line: int
    """The line that it begins on, from 1."""
    text: bytes
    """Empty if there is a `problem`."""
    problem: str | None = None
    end: int = 0
    """Bytes of the file, compressed if it is, that have been read by then."""


def entries(
    file: FileInput, entry_bytes_max: int = ENTRY_BYTES_MAX, forms: Forms = DYNAMODB
) -> Iterator[Entry]:
    """The entries of an opened file of rows, in order.

    Args:
        file: It is read to its end.
        entry_bytes_max: Longer entries are skipped, with a `problem`.
        forms: The documents that contain rows.

    Raises:
        FileError: the file cannot be read from some line on, or its format is not supported.
    """
    if file.format != TEXT:
        raise FileError(f"{file.name}: is {file.format}; {forms.supported}")
    try:
        yield from _Splitter(file, entry_bytes_max, forms).entries()
    except OSError as error:
        raise FileError(f"{file.name}: {error.strerror or error}") from error


class _Splitter:
    """Splits one file."""

    def __init__(self, file: FileInput, entry_bytes_max: int, forms: Forms) -> None:
        self._file = file
        self._text = JsonScanner(file.stream, entry_bytes_max)
        self._entry_bytes_max = entry_bytes_max
        self._forms = forms
        self._number = 0
        self._continued_line: int | None = None
        """The line with a token for the next page, if the reply is not complete."""
        self._id_line: int | None = None
        """The line with an id of the object itself."""
        self._has_vector = False

    def entries(self) -> Iterator[Entry]:
        text = self._text
        self._check_form()
        while first := text.peek():
            line = text.line
            if first == b",":
                text.step()
            elif first == b"[":
                yield from self._array()
            elif first == b"{":
                is_entry = yield from self._document()
                if is_entry and text.line == line and text.line_ends():
                    yield from self._lines()
            elif not (yield from self._skip(MalformedError("is not a JSON object"), b"")):
                raise FileError(
                    f"{self._file.name}: line {line} begins neither an array nor an object"
                )
        if self._continued_line is not None:
            why = "the reply continues after this file (it has a NextToken): rows are missing"
            yield self._entry(self._continued_line, b"", why)

    def _check_form(self) -> None:
        """Raises: FileError: the file is not JSON."""
        first = self._text.peek()
        if first in {b"", b"{", b"["}:
            return
        begin = self._text.ahead(_HEAD_BYTES).split(b"\n")[0]
        form = "is text"
        if first == b"<":
            form = "is HTML or XML"
        elif b"," in begin or b"\t" in begin:
            form = "is CSV or the like"
        shown = begin[:_SHOWN].decode("utf-8", "replace").strip()
        raise FileError(
            f"{self._file.name}: {form} (it begins with {shown!r}); {self._forms.supported}"
        )

    def _entry(self, line: int, text: bytes, problem: str | None = None) -> Entry:
        self._number += 1
        return Entry(self._number, line, text, problem, self._file.position)

    def _lines(self) -> Iterator[Entry]:
        for line, text in self._text.lines():
            if text is None:
                yield self._entry(line, b"", f"is longer than {self._entry_bytes_max} bytes")
            elif text.strip():
                yield self._entry(line, text)

    def _skip(self, broken: MalformedError, indent: bytes | None) -> Generator[Entry, None, bool]:
        """Yields a broken entry, and skips to the next one. Returns whether there is one."""
        line = self._text.line
        recovered = self._text.recover(indent)
        yield self._entry(line, b"", str(broken))
        return recovered

    def _document(self) -> Generator[Entry, None, bool]:
        """The rows that an object contains, or itself. Returns whether it is a row itself."""
        text = self._text
        line, indent = text.line, text.indent
        self._begin_object()
        begins, entry = None, b""
        broken: MalformedError | None = None
        with text.retained():
            try:
                text.step()
                begins = self._members()
                if begins is not None and self._is_row():
                    begins = None
                entry = text.since()
            except MalformedError as error:
                broken = error
                text.rewind()
        if broken is not None:
            yield from self._skip(broken, indent)
            return False
        if begins is None:
            self._continued_line = None
            yield self._entry(line, entry)
            return True
        try:
            while begins is not None:
                yield from self._array() if begins == b"[" else self._tables()
                begins = self._members()
        except MalformedError:
            where = f"line {text.line} cannot be read after the items of the reply"
            raise FileError(f"{self._file.name}: {where}") from None
        if self._id_line is not None:
            why = f"has an id after {self._entry_bytes_max} bytes: its lists were read as rows"
            yield self._entry(self._id_line, b"", why)
        return False

    def _begin_object(self) -> None:
        self._continued_line = self._id_line = None
        self._has_vector = False

    def _is_row(self) -> bool:
        """Whether an object is a row itself, although it has a member that may have rows.

        An id may come after that member, so the object is read on, as far as a row may be long.
        The position is at that member; it moves to the end of a row, and else stays.

        Raises:
            MalformedError: it is a row, and cannot be read further.
        """
        text, forms = self._text, self._forms
        if not (forms.ids or forms.vectors):
            return False
        begins: bytes | None = b""
        has_rows = False
        try:
            while begins is not None:
                has_rows = has_rows or not text.at(_NO_OBJECTS)
                text.value()
                begins = self._members()
            if self._id_line is not None or (self._has_vector and not has_rows):
                return True
        except MalformedError:
            if self._id_line is not None:
                raise
        text.rewind()
        self._begin_object()
        text.step()
        self._members()
        return False

    def _members(self, *, of_tables: bool = False) -> bytes | None:
        """Moves to the next member that has rows.

        Args:
            of_tables: Whether each member is a table with its rows.

        Returns:
            The first byte of its value, `[` or `{`; None after the end of the object.

        Raises:
            MalformedError: the object cannot be read further.
        """
        text = self._text
        while (first := text.peek()) != b"}":
            if first == b",":
                text.step()
                continue
            line, name = text.line, text.value()
            if not name.startswith(b'"') or text.peek() != b":":
                raise MalformedError("has a member that is not a name, a colon and a value")
            text.step()
            begins = text.peek()
            if not of_tables and _unescaped(name) in self._forms.ids:
                self._id_line = line
            known = of_tables or name in self._forms.lists
            if begins == b"[" and text.at(_OBJECTS if known else _REQUESTS):
                return begins
            if begins == b"{" and name in self._forms.maps:
                return begins
            self._has_vector |= not of_tables and _unescaped(name) in self._forms.vectors
            if text.value() not in _EMPTY and name in _CONTINUATIONS:
                self._continued_line = line
        text.step()
        return None

    def _tables(self) -> Iterator[Entry]:
        self._text.step()
        while self._members(of_tables=True) is not None:
            yield from self._array()

    def _array(self) -> Iterator[Entry]:
        text, name = self._text, self._file.name
        text.step()
        while (first := text.peek()) != b"]":
            if not first:
                raise FileError(f"{name}: ends after line {text.line} without closing its array")
            if first == b",":
                text.step()
                continue
            line, indent = text.line, text.indent
            if not self._number and first in _NOT_OBJECTS:
                form = f"is an array of {_NOT_OBJECTS[first]}"
                raise FileError(f"{name}: {form}; {self._forms.supported}")
            try:
                value = text.value()
            except MalformedError as broken:
                if not (yield from self._skip(broken, indent)):
                    raise FileError(
                        f"{name}: cannot be read from entry {self._number} on, on line {line}: "
                        f"{broken}"
                    ) from None
            else:
                yield self._entry(line, value)
        text.step()


def _unescaped(name: bytes) -> bytes:
    """A name, in quotes, as UTF-8 without escapes; malformed ones are unchanged."""
    if b"\\" not in name:
        return name
    try:
        return msgspec.json.encode(msgspec.json.decode(name))
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return name
