"""Requesting an import: written to the table first, then enqueued once its object is there."""

import unicodedata
from dataclasses import dataclass
from typing import Final

import msgspec

from core import names, telemetry, tracing
from core.attributes.values import NOT_A_NAME, is_name
from core.errors import FieldError, Invalid, MetricConflict, ModelBeingDeleted, NotFound
from core.identifiers import validate_model_version
from core.limits import ATTRIBUTES_MAX, OBJECT_KEY_BYTES_MAX, UPLOAD_S
from core.models import (
    Import,
    ImportParameters,
    ImportProgress,
    Model,
    UploadTerms,
    now,
    parse_timestamp,
    timestamp,
)
from core.object_store import ObjectStore, checksum_text
from core.queue import JobQueue
from core.repositories.idempotency import Claim
from core.repositories.imports import ImportRepository
from core.repositories.leased_rows import new_id
from core.repositories.models import ModelRepository
from core.settings import Settings

_FORBIDDEN_PARTS: Final = frozenset({"", ".", ".."})

_log = telemetry.logger(__name__)


class UploadAddress(msgspec.Struct, frozen=True):
    """Where the object of an import is to be put, by a PUT with exactly these header fields."""

    url: str
    headers: dict[str, str]
    expires_in_s: int


@dataclass
class ImportService:
    """Opens imports. A worker stores the rows."""

    models: ModelRepository
    imports: ImportRepository
    objects: ObjectStore
    queue: JobQueue
    settings: Settings

    async def request(
        self,
        model_version: str,
        parameters: ImportParameters,
        upload: UploadTerms | None = None,
        claim: Claim | None = None,
    ) -> Import:
        """Opens an import of an object that is there, or with `upload` of one that will be.

        The transaction that opens it completes the claim. With `upload` the object's key is made
        here, whatever the parameters say. The model version need not exist: the first rows make it.

        Raises:
            Invalid: the key is none of this environment's imports, there is no such object, it is
                too large, or a name is not one of an attribute.
            MetricConflict: the model version has another metric.
            ModelBeingDeleted: it is marked for deletion.
            TooManyImports: as many of the model version are open as may be.
        """
        validate_model_version(model_version)
        self._check(parameters, upload)
        import_id = new_id()
        etag, size = None, 0
        if upload is not None:
            key = names.upload_key(self.settings.environment, import_id)
            parameters = msgspec.structs.replace(parameters, key=key)
        else:
            etag, size = await self._head(parameters.key)
        model = await self._model(model_version, parameters)
        opened = Import(
            import_id=import_id,
            model_version=model_version,
            status="queued" if upload is None else "waiting",
            requested_at=timestamp(now()),
            parameters=parameters,
            upload=upload,
            etag=etag,
            size_bytes=size,
            progress=ImportProgress("queued" if upload is None else "upload"),
            generation=0 if model is None else model.generation,
            request_id=telemetry.request_id(),
            trace=tracing.traceparent(),
        )
        await self.imports.open_import(opened, model, claim)
        enqueued = upload is None and await self.queue.enqueue_import(
            import_id, opened.fence, opened.trace
        )
        _log.info(
            "import requested",
            import_id=import_id,
            model_version=model_version,
            upload=upload is not None,
            enqueued=enqueued,
        )
        return opened

    async def upload_address(self, opened: Import) -> UploadAddress | None:
        """Where to put the object of an import that waits for it; None where it is too late."""
        if opened.upload is None or opened.status != "waiting":
            return None
        left_s = UPLOAD_S - int((now() - parse_timestamp(opened.requested_at)).total_seconds())
        if left_s < 1:
            return None
        size, sha256 = opened.upload.content_length, opened.upload.sha256
        url = await self.objects.presign_put(opened.parameters.key, left_s, size, sha256)
        headers = {"Content-Length": str(size), "x-amz-checksum-sha256": checksum_text(sha256)}
        return UploadAddress(url, headers, left_s)

    def _check(self, parameters: ImportParameters, upload: UploadTerms | None) -> None:
        problems: list[FieldError] = []
        size_max = self.settings.imports.import_bytes_max
        if upload is None:
            problem = self._key_problem(parameters.key)
            problems += [FieldError("key", problem)] if problem else []
        elif upload.content_length > size_max:
            problems.append(FieldError("content_length", f"is over the limit of {size_max}"))
        names_given = parameters.attributes
        if len(names_given) > ATTRIBUTES_MAX:
            problems.append(FieldError("attributes", f"are over the limit of {ATTRIBUTES_MAX}"))
        for position, name in enumerate(names_given[:ATTRIBUTES_MAX]):
            if not is_name(name):
                problems.append(FieldError(f"attributes[{position}]", NOT_A_NAME))
        if problems:
            raise Invalid.of(*problems)

    def _key_problem(self, key: str) -> str | None:
        """Why this is no key of an object that may be imported; None where it is."""
        prefix = names.imports_prefix(self.settings.environment)
        try:
            size = len(key.encode())
        except UnicodeEncodeError:
            return "is not valid Unicode"
        if not key.startswith(prefix) or key == prefix:
            return f"has to begin with {prefix}, and to have a name after it"
        if size > OBJECT_KEY_BYTES_MAX:
            return f"has {size} bytes, over the limit of {OBJECT_KEY_BYTES_MAX}"
        if not _FORBIDDEN_PARTS.isdisjoint(key.split("/")):
            return "has an empty part, '.' or '..' between its slashes"
        if any(unicodedata.category(each) == "Cc" for each in key):
            return "has a control character"
        return None

    async def _head(self, key: str) -> tuple[str | None, int]:
        try:
            head = await self.objects.head(key)
        except NotFound:
            raise Invalid.of(FieldError("key", "names no object in the bucket")) from None
        size_max = self.settings.imports.import_bytes_max
        if head.size_bytes > size_max:
            problem = f"names an object of {head.size_bytes} bytes, over the limit of {size_max}"
            raise Invalid.of(FieldError("key", problem))
        return head.etag, head.size_bytes

    async def _model(self, model_version: str, parameters: ImportParameters) -> Model | None:
        try:
            model = await self.models.find_model(model_version)
        except NotFound:
            return None
        if model.deleting_at is not None:
            raise ModelBeingDeleted(model_version)
        if parameters.metric not in {None, model.metric}:
            raise MetricConflict(
                f"{model_version} was created with metric {model.metric}, which stays"
            )
        return model
