"""Embeddings: write, read, delete, page through."""

from functools import partial
from typing import Annotated, Final

import msgspec
from litestar import Controller, delete, get, patch, post, put
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import JSONBody, QueryParameter
from msgspec import UNSET

from api.admission.executor import Steps
from api.context import AppContext
from api.http.hooks import BODY, operators, readers
from api.http.idempotency import once
from api.http.paging import LIMIT_DEFAULT, LIST, PageCursor, PageLimit
from api.http.parameters import WATERMARK, MetricQuery, ModelVersion, ProductIdPath, metric_of
from api.http.request import ApiRequest, ApiResponse
from api.wire.attributes import sent_attributes
from api.wire.decoding import body_decoder
from api.wire.embeddings import (
    AttributesPatchBody,
    AttributesPatched,
    BatchBody,
    BatchEntry,
    BatchStored,
    EmbeddingBody,
    EmbeddingItem,
    EmbeddingPage,
    EmbeddingStored,
)
from api.wire.vectors import DECODED_AT_ONCE, floats
from core.attributes.values import Attributes
from core.errors import FieldError, Invalid, Unreadable
from core.identifiers import validate_product_id
from core.models import Embedding, Watermark
from core.repositories.embedding_rows import EmbeddingPosition
from core.usecases.embeddings import EmbeddingService, MalformedRows, Row
from core.vectors.arrays import as_vector

_NO_ROW: Final[Row] = ("", as_vector([]))
"""In the place of an entry that cannot be one."""
WithVectors = Annotated[bool, QueryParameter(description="With the vectors.")]


class EmbeddingController(Controller):
    """Rows of a model version."""

    path = "/models/{model_version:str}"
    tags = ("embeddings",)

    @put(
        "/embeddings/{product_id:str}",
        guards=[operators],
        opt={BODY: "vector"},
        summary="Store an embedding",
        responses={201: ResponseSpec(EmbeddingStored, generate_examples=False)},
        response_headers=[WATERMARK],
    )
    async def store(
        self,
        request: ApiRequest,
        model_version: ModelVersion,
        product_id: ProductIdPath,
        data: JSONBody[EmbeddingBody],
        embedding_service: NamedDependency[EmbeddingService],
        metric: MetricQuery = None,
    ) -> ApiResponse[EmbeddingStored]:
        """Stores one embedding, over the one before it.

        The first write of a model version fixes its dimension and metric.
        """
        msgpack = request.context.msgpack_in
        vector = floats(data.vector, "vector", msgpack=msgpack)
        attributes = sent_attributes(data.attributes, "attributes", msgpack=msgpack)
        stored = await once(
            request,
            partial(
                embedding_service.store_embedding,
                model_version,
                product_id,
                vector,
                metric_of(metric),
                attributes=attributes,
            ),
        )
        return ApiResponse(
            msgspec.convert(stored, EmbeddingStored, from_attributes=True),
            status_code=201 if stored.created else 200,
            headers=_header(request, stored.watermark),
        )

    @post(
        "/embeddings:batch",
        guards=[operators],
        opt={BODY: "batch"},
        status_code=200,
        summary="Store many embeddings",
        response_headers=[WATERMARK],
    )
    async def store_many(
        self,
        request: ApiRequest,
        model_version: ModelVersion,
        data: JSONBody[BatchBody],
        embedding_service: NamedDependency[EmbeddingService],
        metric: MetricQuery = None,
    ) -> ApiResponse[BatchStored]:
        """Stores many embeddings, each id once, or none of them when one is not valid."""
        context = request.context
        rows, attributes, malformed = await context.decode(
            decode_entries(data, msgpack=context.msgpack_in)
        )
        stored = await once(
            request,
            partial(
                embedding_service.store_batch,
                model_version,
                rows,
                metric_of(metric),
                malformed=malformed,
                attributes=attributes,
            ),
        )
        headers = _header(request, stored.watermark)
        return ApiResponse(BatchStored(stored=stored.rows), headers=headers)

    @patch(
        "/embeddings/{product_id:str}",
        guards=[operators],
        summary="Change the attributes of an embedding",
        response_headers=[WATERMARK],
    )
    async def change_attributes(
        self,
        request: ApiRequest,
        model_version: ModelVersion,
        product_id: ProductIdPath,
        data: JSONBody[AttributesPatchBody],
        embedding_service: NamedDependency[EmbeddingService],
    ) -> ApiResponse[AttributesPatched]:
        """Changes the attributes alone, by a JSON merge patch; 404 when there is no embedding."""
        msgpack = request.context.msgpack_in
        changes = sent_attributes(data.attributes, "attributes", msgpack=msgpack) or {}
        patched = await once(
            request, partial(embedding_service.patch_attributes, model_version, product_id, changes)
        )
        return ApiResponse(
            msgspec.convert(patched, AttributesPatched, from_attributes=True),
            headers=_header(request, patched.watermark),
        )

    @get("/embeddings/{product_id:str}", guards=[readers], summary="Get an embedding")
    async def get_one(
        self,
        model_version: ModelVersion,
        product_id: ProductIdPath,
        app: NamedDependency[AppContext],
    ) -> EmbeddingItem:
        """One embedding, the vector as it was sent."""
        validate_product_id(product_id)
        model = await app.resources.models.known_model(model_version)
        return _item(
            await app.resources.embeddings.get_embedding(
                model_version, product_id, model.generation
            )
        )

    @delete(
        "/embeddings/{product_id:str}",
        guards=[operators],
        status_code=204,
        summary="Delete an embedding",
        response_headers=[WATERMARK],
    )
    async def delete(
        self,
        request: ApiRequest,
        model_version: ModelVersion,
        product_id: ProductIdPath,
        embedding_service: NamedDependency[EmbeddingService],
    ) -> ApiResponse[None]:
        """Deletes one embedding; 404 when there is none, or no more."""
        deleted = await once(
            request, partial(embedding_service.delete_embedding, model_version, product_id)
        )
        headers = _header(request, deleted.watermark)
        return ApiResponse(None, status_code=204, headers=headers)

    @get(
        "/embeddings",
        guards=[readers],
        summary="List embeddings",
        opt={LIST: "embeddings/{vectors}/{model_version}"},
    )
    async def get_page(
        self,
        model_version: ModelVersion,
        app: NamedDependency[AppContext],
        page: NamedDependency[PageCursor],
        limit: PageLimit = LIMIT_DEFAULT,
        vectors: WithVectors = True,  # noqa: FBT002 - a parameter of the query
    ) -> EmbeddingPage:
        """A page of a model version's embeddings; `?vectors=false` leaves the vectors out."""
        position = page.position(EmbeddingPosition)
        model = await app.resources.models.known_model(model_version)
        if position is not None and position.generation != model.generation:
            raise Unreadable("the cursor is not valid; start again without it")
        found, further = await app.resources.embeddings.list_embeddings(
            model, limit=limit, position=position, vectors=vectors
        )
        return EmbeddingPage(
            items=[_item(embedding) for embedding in found], next_cursor=page.next(further)
        )


Entries = tuple[list[Row], list[Attributes | None], MalformedRows]
"""The rows of a batch, their attributes, and the errors of those that are no embeddings at all."""


def decode_entries(body: BatchBody, *, msgpack: bool) -> Steps[Entries]:
    """The entries of a batch.

    Raises:
        Unreadable: one of them cannot be read.
    """
    decoder = body_decoder(BatchEntry)
    rows: list[Row] = []
    attributes: list[Attributes | None] = []
    errors: dict[int, tuple[FieldError, ...]] = {}
    for position, raw in enumerate(body.embeddings):
        if position and position % DECODED_AT_ONCE == 0:
            yield 0
        at = f"embeddings[{position}]"
        try:
            entry = decoder.decode(raw, msgpack=msgpack, at=at)
            vector = floats(entry.vector, f"{at}.vector", msgpack=msgpack)
            own = None
            if entry.attributes is not UNSET:  # most often it is, and no name is made for nothing
                own = sent_attributes(entry.attributes, f"{at}.attributes", msgpack=msgpack)
            rows.append((entry.product_id, vector))
            attributes.append(own)
        except Invalid as error:
            rows.append(_NO_ROW)
            attributes.append(None)
            errors[position] = error.errors
    return rows, attributes, errors


def _item(embedding: Embedding) -> EmbeddingItem:
    vector = embedding.vector
    return EmbeddingItem(
        product_id=embedding.product_id,
        dimension=embedding.dimension,
        updated_at=embedding.updated_at,
        vector=None if vector is None else as_vector(vector),
        attributes=embedding.attributes,
    )


def _header(request: ApiRequest, watermark: Watermark) -> dict[str, str]:
    return {"x-watermark": request.context.app.resources.watermarks.encode(watermark)}
