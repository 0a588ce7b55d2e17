"""Scans JSON text of any length value by value, by its brackets and quotes alone."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, Final

BLOCK_BYTES: Final = 1024 * 1024
_HEAD_BYTES: Final = 4096
_SPACE: Final = re.compile(rb"[ \t\r\n]*")
# The opening quote of an incomplete string matches alone. A string has no line break.
_TOKEN: Final = re.compile(rb'"(?:[^"\\\n]++|\\.)*+"|["{}\[\]]', re.DOTALL)
_PART_OF_STRING: Final = re.compile(rb'"(?:[^"\\\n]++|\\.)*+', re.DOTALL)
_SCALAR: Final = re.compile(rb"[^\s,:\[\]{}\"]*")
_CLOSES: Final = {b"{": b"}", b"[": b"]"}
_OPENERS: Final = (b"{", b"[")


class MalformedError(Exception):
    """A value has no end that can be found."""


class JsonScanner:
    """A position in a stream of JSON text, of which only a part is in memory."""

    def __init__(self, stream: BinaryIO, value_bytes_max: int) -> None:
        self._stream = stream
        self._value_bytes_max = value_bytes_max
        self._data = b""
        self._at = 0
        self._retained_from: int | None = None
        self.line = 1
        self._line_begins = True
        self.indent: bytes | None = None
        """The white space before the position, if nothing else is before it on its line."""

    def peek(self) -> bytes:
        """Skips white space and returns the next byte; empty at the end."""
        space = b"\n" if self._line_begins else b""
        self._line_begins = False
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
        """Whether the text at the position matches, within 4 KiB."""
        self.ahead(_HEAD_BYTES)
        return pattern.match(self._data, self._at) is not None

    def ahead(self, size: int) -> bytes:
        """Up to `size` bytes from the position on."""
        while len(self._data) - self._at < size and self._more():
            pass
        return self._data[self._at : self._at + size]

    def line_ends(self) -> bool:
        """Whether only white space follows on this line."""
        return not self.ahead(_HEAD_BYTES).split(b"\n", 1)[0].strip()

    def step(self) -> None:
        """Skips one byte."""
        self._go(self._at + 1)

    @contextmanager
    def retained(self) -> Iterator[None]:
        """Keeps the text from here on in memory, for `since` and `rewind`, during the block."""
        self._retained_from = self._at
        try:
            yield
        finally:
            self._retained_from = None

    def since(self) -> bytes:
        """The text from the start of the `retained` block up to the position."""
        return self._data[self._retained_from or 0 : self._at]

    def rewind(self) -> None:
        """Moves back to the start of the `retained` block."""
        start = self._retained_from or 0
        self.line -= self._data.count(b"\n", start, self._at)
        self._at = start

    def value(self) -> bytes:
        """Skips one JSON value and returns its text, which may still be malformed.

        Raises:
            MalformedError: its end cannot be found. The position is unchanged.
        """
        open_: list[bytes] = []
        offset = 0
        while True:
            offset, done = self._scan(offset, open_)
            if done:
                value = self._data[self._at : self._at + offset]
                self._go(self._at + offset)
                return value
            if len(self._data) - self._at > self._value_bytes_max:
                raise self._too_long()
            if not self._more():
                raise MalformedError("is not closed before the file ends")

    def lines(self) -> Iterator[tuple[int, bytes | None]]:
        """(number, text) of the lines from here on; the text is None if a line is too long.

        It ends before a line that only opens an object or array, to which other lines belong.
        """
        while True:
            end = self._data.find(b"\n", self._at)
            while end < 0 and len(self._data) - self._at <= self._value_bytes_max:
                have = len(self._data) - self._at
                more = self._more()
                end = self._data.find(b"\n", have)
                if not more:
                    break
            if end < 0 and self._at == len(self._data):
                return
            number = self.line
            if end < 0 and len(self._data) - self._at > self._value_bytes_max:
                self._skip_line()
                yield number, None
                continue
            text = self._data[self._at : end + 1 if end >= 0 else len(self._data)]
            if len(text) < _HEAD_BYTES and text.strip() in _OPENERS:
                self._line_begins = True
                return
            self._at += len(text)
            self.line += end >= 0
            yield number, text if len(text) <= self._value_bytes_max else None

    def recover(self, indent: bytes | None) -> bool:
        """Skips to the next line that begins an object with this indent.

        In an indented file the objects within an entry are indented further.

        Returns:
            Whether there is such a line.
        """
        space = rb"[ \t]*" if indent is None else re.escape(indent)
        pattern = re.compile(rb"\n" + space + rb"\{")
        self.step()
        while True:
            found = pattern.search(self._data, self._at)
            if found:
                self._go(found.start())
                return True
            # A match may span the text in memory and the next block.
            self._go(max(self._at, self._data.rfind(b"\n", self._at)))
            before = len(self._data) - self._at
            if not self._more():
                return False
            if before > self._value_bytes_max:
                self._go(before)

    def _skip_line(self) -> None:
        while (end := self._data.find(b"\n", self._at)) < 0:
            self._at = len(self._data)
            if not self._more():
                return
        self._go(end + 1)

    def _scan(self, offset: int, open_: list[bytes]) -> tuple[int, bool]:
        """Continues a scan: the end of the last whole token, and whether it ends the value."""
        first = self._data[self._at : self._at + 1]
        if not first:
            raise MalformedError("is not closed before the file ends")
        if first not in {b'"', b"{", b"["}:
            found = _SCALAR.match(self._data, self._at)
            end = found.end() if found else self._at
            if end == self._at:
                raise MalformedError(f"begins with {first.decode('latin-1')!r}")
            return end - self._at, end < len(self._data)
        for found in _TOKEN.finditer(self._data, self._at + offset):
            token = found[0]
            if token == b'"':
                self._check_part(found.start())
                return found.start() - self._at, False
            if token in _CLOSES:
                open_.append(_CLOSES[token])
            elif len(token) == 1 and (not open_ or open_.pop() != token):
                raise MalformedError("has a bracket that closes nothing")
            if not open_:
                return found.end() - self._at, True
            offset = found.end() - self._at
        return offset, False

    def _check_part(self, start: int) -> None:
        found = _PART_OF_STRING.match(self._data, start)
        end = found.end() if found else start
        if self._data[end : end + 1] == b"\n":
            raise MalformedError("has a string that is not closed on its line")

    def _too_long(self) -> MalformedError:
        return MalformedError(f"is longer than {self._value_bytes_max} bytes")

    def _more(self) -> bool:
        if (
            self._retained_from is not None
            and self._at - self._retained_from > self._value_bytes_max
        ):
            raise self._too_long()
        block = self._stream.read(BLOCK_BYTES)
        start = self._at if self._retained_from is None else self._retained_from
        self._data = self._data[start:] + block
        self._at -= start
        if self._retained_from is not None:
            self._retained_from = 0
        return bool(block)

    def _go(self, to: int) -> None:
        self.line += self._data.count(b"\n", self._at, to)
        self._at = to
