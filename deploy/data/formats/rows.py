"""What the readers of embedding files give: rows and bad rows, in batches; and which columns."""

import uuid
from collections.abc import Iterable, Sequence
from typing import Any, Final, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from deploy.errors import CommandError

_IDS: Final = ("product_id", "product_ids")
_VECTORS: Final = ("vector", "vectors")
_OTHER_IDS: Final = (
    *("id", "ids", "_id", "uuid", "key", "keys", "sku", "asin", "item_id", "itemid", "productid"),
    *("product", "doc_id", "document_id", "pk", "name", "names", "labels", "__index_level_0__"),
)
_OTHER_VECTORS: Final = (
    *("embedding", "embeddings", "values", "vec", "vecs", "emb", "embs", "features", "feature"),
    *("embedding_vector", "data", "arr_0"),
)
"""Names that other stores and tools use: suggested, since an `id` may be a row's number."""
_SHOWN: Final = 10
_NAME_SHOWN: Final = 60


class Row(msgspec.Struct, frozen=True):
    """One row that reads."""

    number: int
    """From 1; of JSON, the line that it begins on."""
    product_id: str
    vector: NDArray[np.float32]
    """float32 (d,); infinite where the file's number is too large for one."""


class BadRow(msgspec.Struct, frozen=True):
    """One row that does not hold, and why."""

    number: int
    product_id: str | None
    reason: str


class Batch(msgspec.Struct, frozen=True):
    """Some rows of the file, in order."""

    rows: list[Row]
    bad: list[BadRow]
    units: int
    """How far this batch brings the reader towards `Source.units`."""


class Columns(msgspec.Struct, frozen=True):
    """Which columns, arrays or members to read, where that was given."""

    product_id: str | None = None
    vector: str | None = None

    def choose(self, names: Sequence[str], name: str) -> tuple[str, str]:
        """The ids' and the vectors' name among those that a file has.

        Raises:
            CommandError: one is missing or there twice. `name` is the file's.
        """
        ids = _choose(names, self.product_id, _IDS)
        vectors = _choose(names, self.vector, _VECTORS)
        if ids is not None and vectors is not None:
            for chosen in (ids, vectors):
                if names.count(chosen) > 1:
                    raise CommandError(
                        f"{name}: has {chosen!r} {names.count(chosen)} times; rename all but one"
                    )
            if ids == vectors:
                raise CommandError(f"{name}: {ids!r} cannot be both the ids and the vectors")
            return ids, vectors
        missing: list[str] = []
        options: list[str] = []
        for found, given, defaults, option, others, parts in (
            (ids, self.product_id, _IDS, "--id-column", _OTHER_IDS, ("_id",)),
            (vectors, self.vector, _VECTORS, "--vector-column", _OTHER_VECTORS, ("vec", "emb")),
        ):
            if found is None:
                missing.append(repr(given or defaults[0]))
                likely = _likely(names, (*defaults, *others), parts)
                options.append(f"{option} {likely or 'NAME'}")
        raise CommandError(
            f"{name}: has no {' and no '.join(missing)} (it has {listed(names)}); say which it is "
            f"by {' '.join(options)}"
        )


def _choose(names: Sequence[str], given: str | None, defaults: tuple[str, ...]) -> str | None:
    return next((name for name in ((given,) if given else defaults) if name in names), None)


def _likely(names: Sequence[str], known: tuple[str, ...], parts: tuple[str, ...]) -> str | None:
    """The name that is most likely meant: one of those known, or one that has such a part."""
    by_case = {name.casefold(): name for name in reversed(names)}
    similar = (name for name in names if any(part in name.casefold() for part in parts))
    return next((by_case[name] for name in known if name in by_case), next(similar, None))


def listed(names: Iterable[str]) -> str:
    """Names for a line of text, the first ten of them."""
    shown = [" ".join(name[:_NAME_SHOWN].split()) for name in names]
    more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    return (", ".join(shown[:_SHOWN]) or "nothing") + more


class RowReader(Protocol):
    """A file of embeddings in one format."""

    units: int | None
    """All there is: rows, or bytes where rows cannot be counted; None where nobody knows."""
    unit: str
    notes: list[str]
    """What was converted, a sentence each; complete when all batches are read."""

    def batches(self, rows_max: int) -> "Iterable[Batch]":
        """The rows from the start on."""

    def close(self) -> None:
        """Closes the file."""


def text_of(product_id: object) -> str | None:
    """An id as text, where it is text, an integer or a UUID; else None."""
    if isinstance(product_id, str):
        return product_id
    if isinstance(product_id, int | uuid.UUID) and not isinstance(product_id, bool):
        return str(product_id)
    return None


def as_float32(numbers: NDArray[Any]) -> NDArray[np.float32]:
    """Numbers as float32, contiguous; infinite where they are too large, as a check then finds."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.ascontiguousarray(numbers, dtype=np.float32)
