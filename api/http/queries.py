"""Query strings, and the pages of lists."""

from typing import Final, TypeVar
from urllib.parse import parse_qsl

from api.http.problems import invalid
from core.errors import Unreadable

C = TypeVar("C", bound=str)

_FIELDS_MAX: Final = 100
_DIGITS_MAX: Final = 20


class Query:
    """The parameters of one query string; the last of a name counts."""

    def __init__(self, raw: bytes) -> None:
        """Takes the query string as it came.

        Raises:
            Unreadable: it is not UTF-8, or has too many parameters.
        """
        self._values: dict[str, str] = {}
        if raw:
            try:
                pairs = parse_qsl(
                    raw.decode("latin-1"),
                    keep_blank_values=True,
                    errors="strict",
                    max_num_fields=_FIELDS_MAX,
                )
            except ValueError:
                raise Unreadable("the query cannot be read as UTF-8") from None
            self._values = dict(pairs)

    def text(self, name: str) -> str | None:
        """A parameter as it is; None where it is not given."""
        return self._values.get(name)

    def integer(self, name: str, *, default: int, minimum: int, maximum: int) -> int:
        """A whole number.

        Raises:
            Invalid: it is none, or out of bounds.
        """
        text = self._values.get(name)
        if text is None:
            return default
        digits = text.removeprefix("-")
        if digits.isascii() and digits.isdigit() and len(digits) <= _DIGITS_MAX:
            value = int(text)
            if minimum <= value <= maximum:
                return value
        raise invalid(name, f"must be a whole number from {minimum} to {maximum}")

    def flag(self, name: str, *, default: bool) -> bool:
        """`true` or `false`.

        Raises:
            Invalid: it is something else.
        """
        text = self._values.get(name)
        if text is None:
            return default
        if text not in {"true", "false"}:
            raise invalid(name, "must be true or false")
        return text == "true"

    def choice(self, name: str, choices: tuple[C, ...]) -> C | None:
        """One of a few words; None where it is not given.

        Raises:
            Invalid: it is something else.
        """
        text = self._values.get(name)
        if text is None:
            return None
        for choice in choices:
            if choice == text:
                return choice
        raise invalid(name, f"must be one of {', '.join(choices)}")
