"""Media types and content codings, as RFC 9110 has them (8.3, 8.4, 12.5.1)."""

import re
from functools import lru_cache
from typing import Final, Literal

Media = Literal["json", "msgpack"]
Coding = Literal["gzip", "zstd"]

CODINGS: Final = "gzip, zstd"

_MSGPACK: Final = frozenset(
    {"application/msgpack", "application/x-msgpack", "application/vnd.msgpack"}
)
_JSON: Final = frozenset({"", "application/json", "text/json", "application/x-www-form-urlencoded"})
"""`curl -d` labels what it sends a form, and some clients do not label it at all."""
_CODINGS: Final[dict[str, Coding]] = {"gzip": "gzip", "x-gzip": "gzip", "zstd": "zstd"}
_QUALITY: Final = re.compile(r"(?:0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)")
_TYPE: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+/[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_PIECES: Final = re.compile(r'(?:"(?:[^"\\]|\\.)*"|[^",])+')
"""Elements of a list: a comma inside of quotes divides nothing."""
_CACHED_BYTES_MAX: Final = 256
_NAMES: Final[dict[str, int]] = {"*/*": 1, "application/*": 2}


def media_of(content_type: bytes) -> Media | None:
    """What a body is written in; None for a media type that is not taken."""
    return _media_of(content_type) if len(content_type) <= _CACHED_BYTES_MAX else None


@lru_cache(maxsize=256)
def _media_of(content_type: bytes) -> Media | None:
    name = content_type.decode("latin-1").partition(";")[0].strip().lower()
    if name in _JSON or (name.endswith("+json") and _TYPE.fullmatch(name)):
        return "json"
    return "msgpack" if name in _MSGPACK else None


def coding_of(content_encoding: bytes) -> tuple[Coding | None, bool]:
    """The coding of a body, and whether it is taken: none or one of gzip and zstd."""
    names = [name.strip() for name in content_encoding.decode("latin-1").lower().split(",")]
    codings = [name for name in names if name not in {"", "identity"}]
    if not codings:
        return None, True
    return _CODINGS.get(codings[0]), len(codings) == 1 and codings[0] in _CODINGS


def prefers_msgpack(accept: bytes) -> bool:
    """Whether an answer is msgpack, by an `Accept`: JSON is the rule, and where nothing fits.

    Where both are as good, msgpack is answered to those who name it.
    """
    if not accept or accept == b"*/*":
        return False
    return _prefers(accept) if len(accept) <= _CACHED_BYTES_MAX else _weighed(accept)


def _weighed(accept: bytes) -> bool:
    json = msgpack = (0, 0.0)
    """How exactly the type is named, and its quality: the most exact range counts."""
    for element in _PIECES.findall(accept.decode("latin-1")):
        name, *parameters = (part.strip().lower() for part in element.split(";"))
        quality, exact = _quality(parameters)
        if quality is None:
            continue
        if name in _NAMES:
            json = max(json, (_NAMES[name], quality))
            msgpack = max(msgpack, (_NAMES[name], quality))
        elif name == "application/json":
            json = max(json, (3, quality))
        elif name == "application/msgpack" and exact:
            msgpack = max(msgpack, (3, quality))
    if msgpack[1] == json[1]:
        return msgpack[0] == 3 and msgpack[1] > 0  # noqa: PLR2004 - named by itself
    return msgpack[1] > json[1]


def _quality(parameters: list[str]) -> tuple[float | None, bool]:
    """The weight of a range, None for one that cannot be read, and whether that is all it has."""
    quality, exact = 1.0, True
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            if not _QUALITY.fullmatch(value.strip()):
                return None, exact
            return float(value), exact
        exact = exact and not parameter
    return quality, exact


_prefers: Final = lru_cache(maxsize=256)(_weighed)
