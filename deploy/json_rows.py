"""Files of JSON rows, an entry at a time: an array, what `aws dynamodb scan` prints, or lines.

Nothing is ever in memory as a whole, and one bad entry does not take those after it along: an
entry is cut out by its brackets and quotes alone, before anyone reads it.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from deploy.errors import CommandError
from deploy.readers import BOM, numbered_lines

ENTRY_BYTES_MAX: Final = 16 * 1024 * 1024
"""An item of DynamoDB has up to 400 KB, which indented DynamoDB-JSON can make twenty times of."""
_BLOCK_BYTES: Final = 1024 * 1024
_HEAD_BYTES: Final = 4096
_WIDE_MARKS: Final = (b"\xff\xfe", b"\xfe\xff")
_SPACE: Final = re.compile(rb"[ \t\r\n]*")
# A quote that does not begin a whole string comes out alone; a string has no line break in it.
_TOKEN: Final = re.compile(rb'"(?:[^"\\\n]++|\\.)*+"|["{}\[\]]', re.DOTALL)
_PART_OF_STRING: Final = re.compile(rb'"(?:[^"\\\n]++|\\.)*+', re.DOTALL)
_SCALAR: Final = re.compile(rb"[^\s,:\[\]{}\"]*")
_CLOSES: Final = {b"{": b"}", b"[": b"]"}
_SCAN: Final = re.compile(
    rb'\{\s*(?:"(?:Count|ScannedCount)"\s*:\s*\d+\s*,\s*|"ConsumedCapacity"\s*:\s*null\s*,\s*)*'
    rb'"Items"\s*:\s*(?=\[)'
)
_GOES_ON: Final = {b'"NextToken"', b'"LastEvaluatedKey"'}


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
    """Bytes of the file up to its end."""


class _BrokenError(Exception):
    """An entry cannot be cut out."""


def entries(path: Path) -> Iterator[Entry]:
    """The entries of a file, in order.

    Raises:
        CommandError: the file does not read, from the start or from some line on.
    """
    try:
        with path.open("rb") as file:
            yield from _entries(file, path)
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror or error}") from error


def _entries(file: BinaryIO, path: Path) -> Iterator[Entry]:
    mark = file.read(len(BOM))
    if mark.startswith(_WIDE_MARKS):
        raise CommandError(f"{path}: is UTF-16; save it as UTF-8")
    start = len(BOM) if mark == BOM else 0
    file.seek(start)
    text = _Text(file, start)
    if text.peek() == b"[" or text.at(_SCAN):
        yield from _documents(text, path)
        return
    file.seek(start)
    yield from _lines(file, start)


def _lines(file: BinaryIO, start: int) -> Iterator[Entry]:
    number, end = 0, start
    for line_number, line, size in numbered_lines(file, ENTRY_BYTES_MAX):
        end += size
        if line is None:
            number += 1
            yield Entry(number, line_number, b"", f"is longer than {ENTRY_BYTES_MAX} bytes", end)
        elif line.strip():
            number += 1
            yield Entry(number, line_number, line, None, end)


def _documents(text: "_Text", path: Path) -> Iterator[Entry]:
    """Arrays and scans, one after another: pages that were put into one file."""
    number = 0
    cut: int | None = None
    while text.peek():
        wrapped = text.skip(_SCAN)
        if text.peek() != b"[":
            raise CommandError(f"{path}: line {text.line} begins neither an array nor a scan")
        for entry in _array(text, path, number):
            number = entry.number
            yield entry
        cut = _tail(text, path) if wrapped else None
    if cut is not None:
        why = "the scan goes on where this file ends (it has a NextToken): rows are missing"
        yield Entry(number + 1, cut, b"", why, text.end)


def _array(text: "_Text", path: Path, number: int) -> Iterator[Entry]:
    text.step()
    while (first := text.peek()) != b"]":
        if not first:
            raise CommandError(f"{path}: ends after line {text.line} without closing its array")
        if first == b",":
            text.step()
            continue
        number += 1
        line, indent = text.line, text.indent
        try:
            value = text.value()
        except _BrokenError as broken:
            recovered = text.recover(indent)
            yield Entry(number, line, b"", str(broken), text.end)
            if not recovered:
                raise CommandError(
                    f"{path}: does not read on from entry {number}, on line {line}: {broken}"
                ) from None
        else:
            yield Entry(number, line, value, None, text.end)
    text.step()


def _tail(text: "_Text", path: Path) -> int | None:
    """Passes over what comes after a scan's items; the line that says that it is cut short."""
    cut = None
    try:
        while text.peek() == b",":
            text.step()
            text.peek()
            line, name = text.line, text.value()
            if text.peek() != b":":
                break
            text.step()
            text.peek()
            if text.value() != b"null" and name in _GOES_ON:
                cut = line
        if text.peek() == b"}":
            text.step()
            return cut
    except _BrokenError:
        pass
    raise CommandError(f"{path}: line {text.line} does not read on after the items of the scan")


class _Text:
    """A file's text with a place in it, of which only a part is in memory."""

    def __init__(self, file: BinaryIO, start: int) -> None:
        self._file = file
        self._data = b""
        self._at = 0
        self.line = 1
        self.end = start
        """Bytes of the file up to the place."""
        self.indent: bytes | None = None
        """The space before the place where it is the first on its line, else None."""

    def peek(self) -> bytes:
        """The next byte that is no space; empty at the end."""
        space = b""
        while True:
            found = _SPACE.match(self._data, self._at)
            end = found.end() if found else self._at
            space = space[-_HEAD_BYTES:] + self._data[self._at : end]
            self._go(end)
            if self._at < len(self._data):
                _, broken, after = space.rpartition(b"\n")
                self.indent = after if broken else None
                return self._data[self._at : self._at + 1]
            if not self._more():
                return b""

    def at(self, pattern: re.Pattern[bytes]) -> bool:
        """Whether the text goes on so."""
        while len(self._data) - self._at < _HEAD_BYTES and self._more():
            pass
        return pattern.match(self._data, self._at) is not None

    def skip(self, pattern: re.Pattern[bytes]) -> bool:
        """Passes over what goes on so; whether it did."""
        there = self.at(pattern)
        found = pattern.match(self._data, self._at)
        if found:
            self._go(found.end())
        return there

    def step(self) -> None:
        """Passes over one byte."""
        self._go(self._at + 1)

    def value(self) -> bytes:
        """Passes over one JSON value and returns its text, which may still be malformed.

        Raises:
            _BrokenError: its end cannot be told. The place is where it was.
        """
        open_: list[bytes] = []
        offset = 0
        while True:
            offset, done = self._scan(offset, open_)
            if done:
                value = self._data[self._at : self._at + offset]
                self._go(self._at + offset)
                return value
            if len(self._data) - self._at > ENTRY_BYTES_MAX:
                raise _BrokenError(f"is longer than {ENTRY_BYTES_MAX} bytes")
            if not self._more():
                raise _BrokenError("is not closed before the file ends")

    def recover(self, indent: bytes | None) -> bool:
        """Goes to the next line that begins an object as far in as `indent`; whether there is one.

        Objects inside of an entry lie deeper in a file that is indented at all.
        """
        space = rb"[ \t]*" if indent is None else re.escape(indent)
        pattern = re.compile(rb"\n" + space + rb"\{")
        self.step()
        while True:
            found = pattern.search(self._data, self._at)
            if found:
                self._go(found.start())
                return True
            # A match may begin in what is there and end in what comes.
            self._go(max(self._at, self._data.rfind(b"\n", self._at)))
            before = len(self._data) - self._at
            if not self._more():
                return False
            if before > ENTRY_BYTES_MAX:
                self._go(before)

    def _scan(self, offset: int, open_: list[bytes]) -> tuple[int, bool]:
        """Goes on from `offset`; how far whole tokens reach, and whether that ends the value."""
        first = self._data[self._at : self._at + 1]
        if first not in {b'"', b"{", b"["}:
            found = _SCALAR.match(self._data, self._at)
            end = found.end() if found else self._at
            if end == self._at:
                raise _BrokenError(f"begins with {first.decode('latin-1')!r}")
            return end - self._at, end < len(self._data)
        for found in _TOKEN.finditer(self._data, self._at + offset):
            token = found[0]
            if token == b'"':
                self._check_part(found.start())
                return found.start() - self._at, False
            if token in _CLOSES:
                open_.append(_CLOSES[token])
            elif len(token) == 1 and (not open_ or open_.pop() != token):
                raise _BrokenError("has a bracket that closes nothing")
            if not open_:
                return found.end() - self._at, True
            offset = found.end() - self._at
        return offset, False

    def _check_part(self, start: int) -> None:
        found = _PART_OF_STRING.match(self._data, start)
        end = found.end() if found else start
        if self._data[end : end + 1] == b"\n":
            raise _BrokenError("has a string that is not closed on its line")

    def _more(self) -> bool:
        block = self._file.read(_BLOCK_BYTES)
        self._data = self._data[self._at :] + block
        self._at = 0
        return bool(block)

    def _go(self, to: int) -> None:
        self.line += self._data.count(b"\n", self._at, to)
        self.end += to - self._at
        self._at = to
