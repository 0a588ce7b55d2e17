"""Embeddings: write, read, delete, page through."""

from functools import partial
from typing import Any, Final, cast

from litestar import Controller, Request, Response, delete, get, post, put
from litestar.params import FromPath

from api.auth.tokens import operators, readers
from api.http.context import Call, call_in, response
from api.http.guards import BODY
from api.http.idempotency import answer_once, nothing
from api.http.paging import Paging
from api.http.paths import unescape
from api.http.problems import Reply
from api.http.queries import Query
from api.routes.batches import Batch, read_batch, store_batch
from api.wire.decoding import Shape
from api.wire.schemas import (
    BatchStored,
    EmbeddingItem,
    EmbeddingPage,
    EmbeddingStored,
    VectorBody,
)
from api.wire.vectors import floats
from core.errors import Unreadable
from core.identifiers import validate_model_version, validate_product_id
from core.models import Embedding, Metric, Watermark
from core.repositories.embeddings import EmbeddingPosition
from core.repositories.idempotency import Claim
from core.results import DeletedEmbedding, StoredBatch, StoredEmbedding
from core.vectors.arrays import Floats, as_vector, json_floats

METRICS: Final[tuple[Metric, ...]] = ("cosine", "ip", "l2")

_vector: Final = Shape(VectorBody)


class EmbeddingController(Controller):
    """Rows of a model version."""

    path = "/models/{model_version:str}"
    tags = ("embeddings",)

    @put(
        "/embeddings/{product_id:str}",
        guards=[operators],
        opt={BODY: "vector"},
        summary="Store an embedding",
    )
    async def store(
        self,
        request: Request[Any, Any, Any],
        model_version: FromPath[str],
        product_id: FromPath[str],
    ) -> Response[EmbeddingStored]:
        """Stores one embedding, over the one before it.

        The first write of a model version fixes its dimension and metric.
        """
        call = call_in(request)

        async def act(claim: Claim | None, sent: tuple[Query, Floats]) -> StoredEmbedding:
            query, vector = sent
            return await call.context.resources.embedding_service.store_embedding(
                unescape(model_version),
                unescape(product_id),
                vector,
                query.choice("metric", METRICS),
                claim,
            )

        return response(await answer_once(call, _read_vector, act, partial(_stored, call)))

    @post(
        "/embeddings:batch",
        guards=[operators],
        opt={BODY: "batch"},
        status_code=200,
        summary="Store many embeddings",
    )
    async def store_many(
        self, request: Request[Any, Any, Any], model_version: FromPath[str]
    ) -> Response[BatchStored]:
        """Stores many embeddings, each id once, or none of them when one does not hold."""
        call = call_in(request)

        async def act(claim: Claim | None, sent: tuple[Query, Batch]) -> StoredBatch:
            query, batch = sent
            metric = query.choice("metric", METRICS)
            return await store_batch(call, unescape(model_version), batch, metric, claim)

        return response(await answer_once(call, _read_batch, act, partial(_stored_batch, call)))

    @get("/embeddings/{product_id:str}", guards=[readers], summary="Get an embedding")
    async def get_one(
        self,
        request: Request[Any, Any, Any],
        model_version: FromPath[str],
        product_id: FromPath[str],
    ) -> Response[EmbeddingItem]:
        """One embedding, the vector as it was sent."""
        call = call_in(request)
        name, wanted = unescape(model_version), unescape(product_id)
        validate_model_version(name)
        validate_product_id(wanted, call.context.settings.limits.product_id_bytes_max)
        resources = call.context.resources
        model = await resources.models.known_model(name)
        embedding = await resources.embeddings.get_embedding(name, wanted, model.generation)
        return response(call.reply(_item(embedding, msgpack=call.msgpack_out)))

    @delete(
        "/embeddings/{product_id:str}",
        guards=[operators],
        status_code=204,
        summary="Delete an embedding",
    )
    async def delete(
        self,
        request: Request[Any, Any, Any],
        model_version: FromPath[str],
        product_id: FromPath[str],
    ) -> Response[None]:
        """Deletes one embedding; 404 when there is none, or no more."""
        call = call_in(request)

        async def act(claim: Claim | None, _sent: None) -> DeletedEmbedding:
            name = unescape(model_version)
            validate_model_version(name)
            return await call.context.resources.embedding_service.delete_embedding(
                name, unescape(product_id), claim
            )

        return response(await answer_once(call, nothing, act, partial(_deleted, call)))

    @get("/embeddings", guards=[readers], summary="List embeddings")
    async def get_page(
        self, request: Request[Any, Any, Any], model_version: FromPath[str]
    ) -> Response[EmbeddingPage]:
        """A page of a model version's embeddings; `?vectors=false` leaves the vectors out."""
        call = call_in(request)
        name = unescape(model_version)
        vectors = Query(call.query).flag("vectors", default=True)
        paging = Paging(call, f"embeddings/{vectors}/{name}")
        position = paging.position(EmbeddingPosition)
        limit = paging.limit
        validate_model_version(name)
        resources = call.context.resources
        model = await resources.models.known_model(name)
        if position is not None and position.generation != model.generation:
            raise Unreadable("the cursor is not valid; start again without it")
        found, further = await resources.embeddings.list_embeddings(
            model, limit=limit, position=position, vectors=vectors
        )
        items = [_item(embedding, msgpack=call.msgpack_out) for embedding in found]
        page = EmbeddingPage(items=items, next_cursor=paging.cursor(further))
        return response(call.reply(page))


def _stored(call: Call, stored: StoredEmbedding) -> Reply:
    answer = EmbeddingStored(
        product_id=stored.product_id, dimension=stored.dimension, updated_at=stored.updated_at
    )
    return call.reply(answer, 201 if stored.created else 200, _watermark(call, stored.watermark))


def _stored_batch(call: Call, stored: StoredBatch) -> Reply:
    return call.reply(BatchStored(stored=stored.rows), headers=_watermark(call, stored.watermark))


def _deleted(call: Call, deleted: DeletedEmbedding) -> Reply:
    return Reply(204, b"", "text/plain", _watermark(call, deleted.watermark))


async def _read_vector(call: Call) -> tuple[Query, Floats]:
    query = Query(call.query)
    msgpack = call.msgpack_in
    body = _vector.decode(call.data, msgpack=msgpack)
    return query, floats(body.vector, call.context.settings.limits, "vector", msgpack=msgpack)


async def _read_batch(call: Call) -> tuple[Query, Batch]:
    return Query(call.query), await read_batch(call)


def _item(embedding: Embedding, *, msgpack: bool) -> EmbeddingItem:
    vector: bytes | list[float] | None = embedding.vector
    if embedding.vector is not None and not msgpack:
        vector = json_floats(as_vector(embedding.vector))
    return EmbeddingItem(
        product_id=embedding.product_id,
        dimension=embedding.dimension,
        updated_at=embedding.updated_at,
        vector=cast("list[float] | None", vector),  # bytes where msgpack is asked for
    )


def _watermark(call: Call, watermark: Watermark) -> tuple[tuple[bytes, bytes], ...]:
    token = call.context.resources.watermarks.encode(watermark)
    return ((b"x-watermark", token.encode()),)
