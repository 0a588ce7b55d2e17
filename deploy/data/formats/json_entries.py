"""Files of JSON rows, an entry at a time: lines, arrays, documents, and what DynamoDB prints.

Nothing is ever in memory as a whole, and one bad entry does not take those after it along: an
entry is cut out by its brackets and quotes alone, before anyone reads it. What surrounds items in
a reply or a request of DynamoDB is skipped; what surrounds one item is left to `dynamodb_json`.
"""

import re
from collections.abc import Generator, Iterator
from typing import Final

import msgspec

from deploy.data.formats.file_input import TEXT, FileInput
from deploy.data.formats.json_text import BrokenError, JsonText
from deploy.errors import CommandError

ENTRY_BYTES_MAX: Final = 16 * 1024 * 1024
"""An item of DynamoDB has up to 400 KB, which indented DynamoDB-JSON can make twenty times of."""
_REQUESTS: Final = re.compile(rb'\[\s*\{\s*"(?:PutRequest|DeleteRequest)"\s*:')
_OBJECTS: Final = re.compile(rb"\[\s*[\]{]")
_GOES_ON: Final = {b'"NextToken"', b'"LastEvaluatedKey"', b'"UnprocessedKeys"'}
_NOTHING: Final = {b"null", b"{}", b'""'}
_NO_ROWS: Final = {b"[": "arrays", b'"': "strings"} | dict.fromkeys(
    (b"%c" % digit for digit in b"-0123456789"), "numbers"
)
"""What an array of something else begins with."""
_HEAD_BYTES: Final = 4096
_SHOWN: Final = 40


class Forms(msgspec.Struct, frozen=True):
    """Which documents have rows in them, rather than being one."""

    lists: frozenset[bytes]
    """Names, in quotes, of members that are arrays of rows, or of what surrounds each."""
    maps: frozenset[bytes]
    """Names of members that have such arrays as their own members, whatever these are called."""
    reads: str
    """What is read, in words, for a file that is of another form."""


DYNAMODB: Final = Forms(
    lists=frozenset({b'"Items"', b'"TransactItems"', b'"Records"', b'"Responses"'}),
    maps=frozenset({b'"Responses"', b'"RequestItems"', b'"UnprocessedItems"'}),
    reads=(
        "`k9 migrate` reads JSON: arrays, lines or documents of rows, plain or in DynamoDB's "
        "types, also as scan, query, get-item, batch-write-item or an export to S3 have them, in "
        "UTF-8 or UTF-16, or gzip"
    ),
)
"""Replies and requests of DynamoDB, in any order of their members."""


class Entry(msgspec.Struct, frozen=True):
    """One entry of the file, not read yet."""

    number: int
    """From 1."""
    line: int
    """From 1: the one it begins on."""
    text: bytes
    """Empty where `problem` says why there is none."""
    problem: str | None = None
    end: int = 0
    """Bytes of the file that are read by then, as it lies there."""


def entries(
    file: FileInput, entry_bytes_max: int = ENTRY_BYTES_MAX, forms: Forms = DYNAMODB
) -> Iterator[Entry]:
    """The entries of an opened file of rows, in order.

    Args:
        file: Which is read to its end.
        entry_bytes_max: Longer entries are skipped, and said to be.
        forms: Which documents have rows in them.

    Raises:
        CommandError: the file does not read, from the start or from some line on, or is of a form
            that is none of those read.
    """
    if file.format != TEXT:
        raise CommandError(f"{file.name}: is {file.format}; {forms.reads}")
    try:
        yield from _Rows(file, entry_bytes_max, forms).entries()
    except OSError as error:
        raise CommandError(f"{file.name}: {error.strerror or error}") from error


class _Rows:
    """Goes through one file."""

    def __init__(self, file: FileInput, entry_bytes_max: int, forms: Forms) -> None:
        self._file = file
        self._text = JsonText(file.stream, entry_bytes_max)
        self._entry_bytes_max = entry_bytes_max
        self._forms = forms
        self._number = 0
        self._cut: int | None = None
        """The line which says that the reply goes on where the file ends."""

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
            elif not (yield from self._skip(BrokenError("is no JSON object"), b"")):
                raise CommandError(
                    f"{self._file.name}: line {line} begins neither an array nor an object"
                )
        if self._cut is not None:
            why = "the reply goes on where this file ends (it has a NextToken): rows are missing"
            yield self._entry(self._cut, b"", why)

    def _check_form(self) -> None:
        """Raises: CommandError: the file is no JSON."""
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
        raise CommandError(
            f"{self._file.name}: {form} (it begins with {shown!r}); {self._forms.reads}"
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

    def _skip(self, broken: BrokenError, indent: bytes | None) -> Generator[Entry, None, bool]:
        """Gives a broken entry, and goes to the next one; whether there is one."""
        line = self._text.line
        recovered = self._text.recover(indent)
        yield self._entry(line, b"", str(broken))
        return recovered

    def _document(self) -> Generator[Entry, None, bool]:
        """The rows of an object: those that it surrounds, or itself. Whether it is one itself."""
        text = self._text
        line, indent = text.line, text.indent
        self._cut = None
        begins, entry = None, b""
        broken: BrokenError | None = None
        with text.held():
            try:
                text.step()
                begins = self._members()
                entry = text.since()
            except BrokenError as error:
                broken = error
                text.rewind()
        if broken is not None:
            yield from self._skip(broken, indent)
            return False
        if begins is None:
            self._cut = None
            yield self._entry(line, entry)
            return True
        try:
            while begins is not None:
                yield from self._array() if begins == b"[" else self._tables()
                begins = self._members()
        except BrokenError:
            where = f"line {text.line} does not read on after the items of the reply"
            raise CommandError(f"{self._file.name}: {where}") from None
        return False

    def _members(self, *, of_tables: bool = False) -> bytes | None:
        """Goes to the next member that has rows; what its value begins with.

        Args:
            of_tables: Whether each member is a table with its rows.

        Returns:
            `[` or `{` with the place on it; None with the place after the object's end.

        Raises:
            BrokenError: the object does not read on.
        """
        text = self._text
        while (first := text.peek()) != b"}":
            if first == b",":
                text.step()
                continue
            line, name = text.line, text.value()
            if not name.startswith(b'"') or text.peek() != b":":
                raise BrokenError("has a member that is not a name, a colon and a value")
            text.step()
            begins = text.peek()
            known = of_tables or name in self._forms.lists
            if begins == b"[" and text.at(_OBJECTS if known else _REQUESTS):
                return begins
            if begins == b"{" and name in self._forms.maps:
                return begins
            if text.value() not in _NOTHING and name in _GOES_ON:
                self._cut = line
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
                raise CommandError(f"{name}: ends after line {text.line} without closing its array")
            if first == b",":
                text.step()
                continue
            line, indent = text.line, text.indent
            if not self._number and first in _NO_ROWS:
                form = f"is an array of {_NO_ROWS[first]}"
                raise CommandError(f"{name}: {form}; {self._forms.reads}")
            try:
                value = text.value()
            except BrokenError as broken:
                if not (yield from self._skip(broken, indent)):
                    raise CommandError(
                        f"{name}: does not read on from entry {self._number}, on line {line}: "
                        f"{broken}"
                    ) from None
            else:
                yield self._entry(line, value)
        text.step()
