"""Reads what changed of one model version: rows, and the attributes of those that have any."""

from collections.abc import AsyncGenerator, Collection, Mapping, Sequence

import msgspec

from core.concurrency import gather
from core.errors import NotFound
from core.models import Embedding, Model, StoredAttributes
from core.resources import Resources


class Changes(msgspec.Struct, frozen=True):
    """What consistent reads found, by product id; None for what is not in the table."""

    rows: Mapping[str, Embedding | None]
    attributes: Mapping[str, StoredAttributes | None]
    """Of more products than those whose rows were read; of none where no product has any."""


class ChangeReader:
    """The rows and attributes of one model version."""

    def __init__(self, resources: Resources, model: Model) -> None:
        self._embeddings = resources.embeddings
        self._attributes = resources.attributes
        self._models = resources.models
        self._model = model
        self._noted = model.has_attributes

    async def read(self, product_ids: Sequence[str], rows_of: Collection[str]) -> Changes:
        """The attributes of these products, and the rows of some of them.

        A write of both is one transaction: attributes are read after the rows, so that they are
        never those from before it.
        """
        wanted = [product_id for product_id in product_ids if product_id in rows_of]
        rows: dict[str, Embedding | None] = dict.fromkeys(wanted)

        async def read_rows() -> None:
            rows.update((row.product_id, row) for row in await self._rows(wanted))

        async def note() -> None:
            await self.has_attributes()

        await gather(note(), read_rows())
        if not self._noted:
            return Changes(rows, {})
        attributes: dict[str, StoredAttributes | None] = dict.fromkeys(product_ids)
        stored = await self._attributes.read_attributes(self._model, product_ids)
        attributes.update((each.product_id, each) for each in stored)
        return Changes(rows, attributes)

    async def has_attributes(self) -> bool:
        """Whether any product has attributes, which is noted before the first ones are written."""
        if not self._noted:
            try:
                model = await self._models.find_model(self._model.model_version)
            except NotFound:
                return False
            same = model.generation == self._model.generation
            self._noted = same and model.has_attributes
        return self._noted

    def rows_since(self, since: str) -> AsyncGenerator[list[Embedding], None]:
        """Pages of the rows changed after a time, as far as the index shows them."""
        return self._embeddings.changed_since(self._model, since)

    def attributes_since(self, since: str) -> AsyncGenerator[list[StoredAttributes], None]:
        """The same of attributes; of all, where the time is empty."""
        return self._attributes.changed_since(self._model, since)

    async def _rows(self, product_ids: Sequence[str]) -> list[Embedding]:
        if not product_ids:
            return []
        name, generation = self._model.model_version, self._model.generation
        return await self._embeddings.read_rows(name, product_ids, generation)
