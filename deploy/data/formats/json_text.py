"""JSON text of any length with a place in it: one value at a time, found by brackets and quotes."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, Final

BLOCK_BYTES: Final = 1024 * 1024
_HEAD_BYTES: Final = 4096
_SPACE: Final = re.compile(rb"[ \t\r\n]*")
# A quote that does not begin a whole string comes out alone; a string has no line break in it.
_TOKEN: Final = re.compile(rb'"(?:[^"\\\n]++|\\.)*+"|["{}\[\]]', re.DOTALL)
_PART_OF_STRING: Final = re.compile(rb'"(?:[^"\\\n]++|\\.)*+', re.DOTALL)
_SCALAR: Final = re.compile(rb"[^\s,:\[\]{}\"]*")
_CLOSES: Final = {b"{": b"}", b"[": b"]"}
_OPENERS: Final = (b"{", b"[")


class BrokenError(Exception):
    """A value cannot be cut out."""


class JsonText:
    """A stream of JSON text, of which only a part is in memory."""

    def __init__(self, stream: BinaryIO, value_bytes_max: int) -> None:
        self._stream = stream
        self._value_bytes_max = value_bytes_max
        self._data = b""
        self._at = 0
        self._held: int | None = None
        self.line = 1
        self._line_begins = True
        self.indent: bytes | None = None
        """The space before the place where it is the first on its line, else None."""

    def peek(self) -> bytes:
        """The next byte that is no space; empty at the end."""
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
        """Whether the text goes on so, within 4 KiB."""
        self.ahead(_HEAD_BYTES)
        return pattern.match(self._data, self._at) is not None

    def ahead(self, size: int) -> bytes:
        """Up to so many bytes from the place on."""
        while len(self._data) - self._at < size and self._more():
            pass
        return self._data[self._at : self._at + size]

    def line_ends(self) -> bool:
        """Whether only space follows on this line."""
        return not self.ahead(_HEAD_BYTES).split(b"\n", 1)[0].strip()

    def step(self) -> None:
        """Passes over one byte."""
        self._go(self._at + 1)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keeps the text from here on in memory for `since` and `rewind`, until the block ends."""
        self._held = self._at
        try:
            yield
        finally:
            self._held = None

    def since(self) -> bytes:
        """The text from where it is held up to the place."""
        return self._data[self._held or 0 : self._at]

    def rewind(self) -> None:
        """Back to where the text is held."""
        start = self._held or 0
        self.line -= self._data.count(b"\n", start, self._at)
        self._at = start

    def value(self) -> bytes:
        """Passes over one JSON value and returns its text, which may still be malformed.

        Raises:
            BrokenError: its end cannot be found. The place is where it was.
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
                raise BrokenError("is not closed before the file ends")

    def lines(self) -> Iterator[tuple[int, bytes | None]]:
        """(number, text) of the lines from here on; None stands for one over the limit.

        Ends before a line that only opens an object or array: others belong to it.
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
            if before > self._value_bytes_max:
                self._go(before)

    def _skip_line(self) -> None:
        while (end := self._data.find(b"\n", self._at)) < 0:
            self._at = len(self._data)
            if not self._more():
                return
        self._go(end + 1)

    def _scan(self, offset: int, open_: list[bytes]) -> tuple[int, bool]:
        """Goes on from `offset`; how far whole tokens reach, and whether that ends the value."""
        first = self._data[self._at : self._at + 1]
        if not first:
            raise BrokenError("is not closed before the file ends")
        if first not in {b'"', b"{", b"["}:
            found = _SCALAR.match(self._data, self._at)
            end = found.end() if found else self._at
            if end == self._at:
                raise BrokenError(f"begins with {first.decode('latin-1')!r}")
            return end - self._at, end < len(self._data)
        for found in _TOKEN.finditer(self._data, self._at + offset):
            token = found[0]
            if token == b'"':
                self._check_part(found.start())
                return found.start() - self._at, False
            if token in _CLOSES:
                open_.append(_CLOSES[token])
            elif len(token) == 1 and (not open_ or open_.pop() != token):
                raise BrokenError("has a bracket that closes nothing")
            if not open_:
                return found.end() - self._at, True
            offset = found.end() - self._at
        return offset, False

    def _check_part(self, start: int) -> None:
        found = _PART_OF_STRING.match(self._data, start)
        end = found.end() if found else start
        if self._data[end : end + 1] == b"\n":
            raise BrokenError("has a string that is not closed on its line")

    def _too_long(self) -> BrokenError:
        return BrokenError(f"is longer than {self._value_bytes_max} bytes")

    def _more(self) -> bool:
        if self._held is not None and self._at - self._held > self._value_bytes_max:
            raise self._too_long()
        block = self._stream.read(BLOCK_BYTES)
        start = self._at if self._held is None else self._held
        self._data = self._data[start:] + block
        self._at -= start
        if self._held is not None:
            self._held = 0
        return bool(block)

    def _go(self, to: int) -> None:
        self.line += self._data.count(b"\n", self._at, to)
        self._at = to
