"""Writing embeddings: validated as a whole before anything is stored."""

from asyncio import CancelledError
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from core import telemetry
from core.attributes.values import Attributes, AttributesPatch, attribute_problems
from core.errors import (
    FieldError,
    Invalid,
    MetricConflict,
    ModelBeingDeleted,
    NotFound,
    OtherGeneration,
    PartlyStored,
    Unavailable,
)
from core.identifiers import product_id_problem, validate_model_version, validate_product_id
from core.models import Metric, Model, Watermark, now, timestamp
from core.notifications import ChangeNotifier
from core.repositories.attributes import AttributeRepository
from core.repositories.embeddings import EmbeddingRepository
from core.repositories.idempotency import Claim
from core.repositories.models import ModelRepository
from core.repositories.transactions import CONFLICTS
from core.results import DeletedEmbedding, PatchedAttributes, StoredBatch, StoredEmbedding
from core.settings import Settings
from core.usecases.dimensions import common_dimension
from core.vectors.arrays import check_vector

T = TypeVar("T")
Row = tuple[str, NDArray[np.float32]]

RowAttributes = Sequence[Attributes | None]
"""The attributes of each row of a batch; None for a row whose attributes stay as they are."""

MalformedRows = Mapping[int, tuple[FieldError, ...]]
"""Rows that could not be decoded, by position, and why."""
_NONE_MALFORMED: MalformedRows = MappingProxyType({})


@dataclass
class EmbeddingService:
    """Stores and deletes embeddings. The first write to a model version creates it."""

    models: ModelRepository
    embeddings: EmbeddingRepository
    attributes: AttributeRepository
    notifier: ChangeNotifier
    settings: Settings

    async def store_embedding(
        self,
        model_version: str,
        product_id: str,
        vector: NDArray[np.float32],
        metric: Metric | None = None,
        claim: Claim | None = None,
        *,
        attributes: Attributes | None = None,
    ) -> StoredEmbedding:
        """Stores one embedding; `vector` is float32 (d,).

        Its attributes are replaced by those that are given, and stay where none are.

        Raises:
            Invalid: the id, the name of the model version, the vector or an attribute is not valid.
            MetricConflict: the model version has another metric.
            ModelBeingDeleted: it is marked for deletion.
            Unavailable: DynamoDB did not take it in time.
        """
        validate_model_version(model_version)
        validate_product_id(product_id)

        async def attempt() -> StoredEmbedding:
            model = await self._known(model_version)
            dimension = model.dimension if model else None
            problem = check_vector(vector, _metric(model, metric), dimension)
            problems = [FieldError("vector", problem)] if problem else []
            problems += attribute_problems(attributes or {})
            if problems:
                raise Invalid.of(*problems)
            model = await self.model_for(model, model_version, len(vector), metric)
            if attributes is not None:
                model = await self.models.note_attributes(model)
            with self._notifying(model_version, (product_id,)):
                stored = await self.embeddings.store_embedding(
                    model, product_id, vector.tobytes(), claim, attributes
                )
            telemetry.ROWS_WRITTEN.inc()
            return stored

        return await self.in_one_generation(model_version, (product_id,), attempt)

    async def store_batch(
        self,
        model_version: str,
        rows: Sequence[Row],
        metric: Metric | None = None,
        claim: Claim | None = None,
        *,
        malformed: MalformedRows = _NONE_MALFORMED,
        attributes: RowAttributes = (),
    ) -> StoredBatch:
        """Stores many embeddings, or none if one of them is not valid.

        The rows are 1 to `BATCH_ROWS_MAX`, and so are their attributes, unless no row has any.
        Under a claim, each is stored once, however often the batch is sent. The claim itself is not
        completed: a batch may need more than one transaction. `malformed` are the rows that could
        not be decoded, by position; in `rows` there is a placeholder for each.

        Raises:
            Invalid: with one of `errors` for each problem, such as `embeddings[3].vector`.
            MetricConflict: the model version has another metric.
            ModelBeingDeleted: it is marked for deletion.
            PartlyStored: DynamoDB took only a part in time.
        """
        validate_model_version(model_version)
        return await self.in_one_generation(
            model_version,
            [product_id for product_id, _ in rows],
            lambda: self._store_batch(model_version, rows, metric, claim, malformed, attributes),
        )

    async def _store_batch(
        self,
        model_version: str,
        rows: Sequence[Row],
        metric: Metric | None,
        claim: Claim | None,
        malformed: MalformedRows,
        attributes: RowAttributes,
    ) -> StoredBatch:
        model = await self._known(model_version)
        self._validate_batch(rows, model, metric, malformed, attributes)
        model = await self.model_for(model, model_version, len(rows[0][1]), metric)
        of_row = {
            product_id: own
            for (product_id, _), own in zip(rows, attributes, strict=False)
            if own is not None
        }
        if of_row:
            model = await self.models.note_attributes(model)
        packed = [(product_id, vector.tobytes()) for product_id, vector in rows]
        with self._notifying(model_version, [product_id for product_id, _ in rows]):
            until = self.models.batch_until(model)
            unprocessed = await self.embeddings.store_batch(model, packed, until, claim, of_row)
        telemetry.ROWS_WRITTEN.inc(len(rows) - len(unprocessed))
        if unprocessed:
            telemetry.ROWS_UNPROCESSED.inc(len(unprocessed))
            raise PartlyStored(len(rows) - len(unprocessed), tuple(unprocessed))
        # Taken last: rows that a shard shows with a later time come after all of the batch.
        return StoredBatch(len(rows), Watermark(timestamp(now()), None, model.generation))

    async def patch_attributes(
        self,
        model_version: str,
        product_id: str,
        patch: AttributesPatch,
        claim: Claim | None = None,
    ) -> PatchedAttributes:
        """Applies a merge patch to the attributes of one embedding; its vector stays.

        Raises:
            Invalid: the id or an attribute is not valid, or there would be too many.
            NotFound: there is no such model version or embedding.
            ModelBeingDeleted: the model version is marked for deletion.
            Unavailable: DynamoDB did not take it in time.
        """
        validate_product_id(product_id)
        problems = attribute_problems(patch, removals=True)
        if problems:
            raise Invalid.of(*problems)

        async def attempt() -> PatchedAttributes:
            model = await self.models.known_model(model_version)
            if not model.has_attributes:
                await self.attributes.find_row(model, product_id)
                model = await self.models.note_attributes(model)
            with self._notifying(model_version, (product_id,), attributes_only=True):
                return await self.attributes.patch_attributes(model, product_id, patch, claim)

        return await self.in_one_generation(model_version, (product_id,), attempt)

    async def delete_embedding(
        self, model_version: str, product_id: str, claim: Claim | None = None
    ) -> DeletedEmbedding:
        """Replaces the embedding with a tombstone.

        Raises:
            NotFound: there is no such model version or embedding.
            ModelBeingDeleted: the model version is marked for deletion.
        """
        validate_product_id(product_id)
        model = await self.models.known_model(model_version)
        with self._notifying(model_version, (product_id,)):
            deleted = await self.embeddings.delete_embedding(model, product_id, claim)
            if not model.has_attributes:
                await self._delete_first_attributes(model, deleted)
        telemetry.ROWS_WRITTEN.inc()
        return deleted

    async def _delete_first_attributes(self, model: Model, deleted: DeletedEmbedding) -> None:
        """Deletes attributes that another process may have begun to write since it was looked.

        That process has noted it in the model version before it read the row, which was there: so
        the note is read here, and what it then writes finds that its attributes have changed.
        """
        try:
            latest = await self.models.get_model(model.model_version)
        except (NotFound, ModelBeingDeleted):
            return  # they go with the model version
        if latest.has_attributes and latest.generation == model.generation:
            await self.embeddings.delete_attributes(model, deleted)

    async def find_model(self, model_version: str) -> Model | None:
        """The model version, or None before its first write."""
        validate_model_version(model_version)
        return await self._known(model_version)

    def find_problems(
        self,
        rows: Sequence[Row],
        model: Model | None,
        metric: Metric | None,
        dimension: int | None = None,
        *,
        attributes: RowAttributes = (),
    ) -> dict[int, list[FieldError]]:
        """The problems of each row of a batch that has any: of id, vector and attributes.

        If there is no model version yet, `dimension` is the one that it will have; None means the
        dimension of most rows.

        Raises:
            Invalid: no dimension is that of most rows.
        """
        found: dict[int, list[FieldError]] = defaultdict(list)
        seen: dict[str, int] = {}
        kind = _metric(model, metric)
        if model is not None:
            dimension = model.dimension
        elif dimension is None:
            vectors = (vector for _, vector in rows)
            dimension = common_dimension(vectors, kind, "embeddings")
        for row, (product_id, vector) in enumerate(rows):
            problem = product_id_problem(product_id)
            first = seen.setdefault(product_id, row)
            if first != row:
                problem = f"{product_id!r} is in the batch already, as entry {first}"
            if problem:
                found[row].append(FieldError("product_id", problem))
            problem = check_vector(vector, kind, dimension)
            if problem:
                found[row].append(FieldError("vector", problem))
        for row, own in enumerate(attributes):
            if own and (problems := attribute_problems(own)):
                found[row] += problems
        return found

    def _validate_batch(
        self,
        rows: Sequence[Row],
        model: Model | None,
        metric: Metric | None,
        malformed: MalformedRows,
        attributes: RowAttributes,
    ) -> None:
        """Raises for all rows that are not valid at once, those that are malformed among them."""
        errors = dict(malformed)
        general: tuple[FieldError, ...] = ()
        try:
            problems = self.find_problems(rows, model, metric, attributes=attributes)
        except Invalid as error:
            if not malformed:
                raise
            problems, general = {}, error.errors
        for row in problems.keys() - malformed.keys():
            errors[row] = tuple(
                FieldError(f"embeddings[{row}].{problem.field}", problem.message)
                for problem in problems[row]
            )
        if errors:
            of_rows = [errors[row] for row in sorted(errors)]
            # An answer has a limit: first one of each row, so that every bad row is named.
            first = [each for each, *_ in of_rows]
            rest = [each for _, *others in of_rows for each in others]
            raise Invalid(
                f"{len(errors)} of {len(rows)} embeddings are not valid; none was stored",
                (*general, *first, *rest),
            )

    @contextmanager
    def _notifying(
        self, model_version: str, product_ids: Sequence[str], *, attributes_only: bool = False
    ) -> Iterator[None]:
        """Publishes that rows were written, also when it is unknown whether they were."""
        try:
            yield
        except (Unavailable, CancelledError):
            self.notifier.publish(model_version, product_ids, attributes_only=attributes_only)
            raise
        self.notifier.publish(model_version, product_ids, attributes_only=attributes_only)

    async def _known(self, model_version: str) -> Model | None:
        """The model version, even if marked for deletion, or None before its first write."""
        try:
            return await self.models.known_model(model_version)
        except NotFound:
            return None
        except ModelBeingDeleted:  # an invalid request is refused as invalid first
            return await self.models.find_model(model_version)

    async def in_one_generation(
        self, model_version: str, product_ids: Sequence[str], attempt: Callable[[], Awaitable[T]]
    ) -> T:
        """The result of an attempt to write rows, retried if a row has another generation.

        Either the model version was deleted and created anew since it was read, or a late write to
        an earlier one left a row, which is removed. The rows are read before the model version: a
        row of another generation than that is of a deleted one.
        """
        async for _ in CONFLICTS.attempts():
            try:
                return await attempt()
            except OtherGeneration:
                rows = await self.embeddings.read_rows(model_version, product_ids)
                self.models.forget(model_version)
                model = await self._known(model_version)
                generation = None if model is None else model.generation
                await self.embeddings.remove_rows(
                    [row for row in rows if row.generation != generation]
                )
        raise Unavailable(f"{model_version} is being created again; try again")

    async def model_for(
        self, model: Model | None, model_version: str, dimension: int, metric: Metric | None
    ) -> Model:
        """The model version to write valid rows to, created if this is its first write.

        Raises:
            Invalid: another write has created it, with another dimension.
            MetricConflict: it has another metric.
            ModelBeingDeleted: it is marked for deletion.
        """
        if model is not None and model.deleting_at is not None:
            raise ModelBeingDeleted(model_version)
        if model is None:
            model = await self.models.create_model(
                model_version, dimension, metric or "cosine", self.settings.ingest.shards
            )
            if model.dimension != dimension:
                problem = f"has {dimension} numbers, the model version has {model.dimension}"
                raise Invalid.of(FieldError("vector", problem))
        if metric is not None and metric != model.metric:
            raise MetricConflict(
                f"{model_version} was created with metric {model.metric}, which stays"
            )
        return model


def _metric(model: Model | None, metric: Metric | None) -> Metric:
    return model.metric if model else metric or "cosine"
