"""The names of a file's ids and vectors: columns of Parquet, arrays of .npz, members of JSON."""

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from core.attributes.values import NOT_A_NAME, is_name
from core.errors import FileError
from core.limits import ATTRIBUTES_MAX

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
"""Names that other stores and tools use. They are only suggested: an `id` may be a row number."""
_SHOWN: Final = 10
_NAME_SHOWN: Final = 60


class Columns(msgspec.Struct, frozen=True):
    """The names to read, where the caller chose them."""

    product_id: str | None = None
    vector: str | None = None
    attributes: tuple[str, ...] = ()
    """Those to store as attributes, under their own names."""
    id_option: str = "--id-column"
    vector_option: str = "--vector-column"
    attributes_option: str = "--attributes"
    """How whoever reads the messages makes these choices: by options of a command, or by fields."""

    @property
    def id_names(self) -> tuple[str, ...]:
        """Every name of ids: the chosen one, if there is one, and the default ones."""
        return (self.product_id, *_IDS) if self.product_id else _IDS

    @property
    def vector_names(self) -> tuple[str, ...]:
        """Every name of vectors, in the same way."""
        return (self.vector, *_VECTORS) if self.vector else _VECTORS

    def choose(self, names: Sequence[str], name: str) -> tuple[str, str]:
        """The names of the ids and of the vectors in a file.

        Args:
            names: All names that the file has.
            name: The file's, for messages.

        Raises:
            FileError: one of the two is missing, or occurs twice.
        """
        ids = _choose(names, self.product_id, _IDS)
        vectors = _choose(names, self.vector, _VECTORS)
        if ids is not None and vectors is not None:
            for chosen in (ids, vectors):
                if names.count(chosen) > 1:
                    raise FileError(
                        f"{name}: has {chosen!r} {names.count(chosen)} times; rename all but one"
                    )
            if ids == vectors:
                raise FileError(f"{name}: {ids!r} cannot be both the ids and the vectors")
            for chosen in self.attributes:
                if chosen in {ids, vectors}:
                    raise FileError(
                        f"{name}: {chosen!r} has the ids or the vectors, so it is no attribute"
                    )
            return ids, vectors
        missing: list[str] = []
        options: list[str] = []
        for found, given, defaults, option, others, parts in (
            (ids, self.product_id, _IDS, self.id_option, _OTHER_IDS, ("_id",)),
            (vectors, self.vector, _VECTORS, self.vector_option, _OTHER_VECTORS, ("vec", "emb")),
        ):
            if found is None:
                missing.append(repr(given or defaults[0]))
                likely = _likely(names, (*defaults, *others), parts)
                options.append(f"{option} {likely or 'NAME'}")
        raise FileError(
            f"{name}: has no {' and no '.join(missing)} (it has {_listed(names)}); say which it is "
            f"by {' '.join(options)}"
        )


def parse_attributes(text: str) -> tuple[str, ...]:
    """The names in a list with commas, each once; none of an empty text.

    Raises:
        FileError: one is no name of an attribute, or there are too many.
    """
    names = tuple(dict.fromkeys(part.strip() for part in text.split(","))) if text.strip() else ()
    for name in names:
        if not is_name(name):
            raise FileError(f"--attributes: {name[:_NAME_SHOWN]!r} {NOT_A_NAME}; rename the column")
    if len(names) > ATTRIBUTES_MAX:
        raise FileError(f"--attributes: {len(names)} names, the most is {ATTRIBUTES_MAX}")
    return names


def check_attributes(name: str, attributes: Iterable[str], names: Sequence[str]) -> None:
    """Checks that a file has these columns, each once.

    Raises:
        FileError: it has not.
    """
    for each in attributes:
        if names.count(each) != 1:
            many = f"{names.count(each)} times; rename all but one"
            has = f"has {each!r} {many}" if each in names else f"has no {each!r}"
            raise FileError(f"{name}: {has} (it has {_listed(names)})")


def _choose(names: Sequence[str], given: str | None, defaults: tuple[str, ...]) -> str | None:
    return next((name for name in ((given,) if given else defaults) if name in names), None)


def _likely(names: Sequence[str], known: tuple[str, ...], parts: tuple[str, ...]) -> str | None:
    """The most likely name: one of those known, or one that contains such a part."""
    by_case = {name.casefold(): name for name in reversed(names)}
    similar = (name for name in names if any(part in name.casefold() for part in parts))
    return next((by_case[name] for name in known if name in by_case), next(similar, None))


def _listed(names: Iterable[str]) -> str:
    """The first ten names, for a message."""
    shown = [" ".join(name[:_NAME_SHOWN].split()) for name in names]
    more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    return (", ".join(shown[:_SHOWN]) or "nothing") + more
