"""Model versions: what their first write fixed, and which build is current."""

from time import monotonic

from core.dynamo import tables
from core.dynamo.client import Dynamo
from core.dynamo.expressions import expressions, key, missing
from core.dynamo.items import Codec
from core.dynamo.wire import request_item
from core.errors import ConditionFailed, NotFound
from core.models import Metric, Model, now, timestamp
from core.settings import Settings

MODEL_CODEC = Codec(Model)


class ModelRepository:
    """The models table."""

    def __init__(self, dynamo: Dynamo, settings: Settings) -> None:
        self._dynamo = dynamo
        self._table = settings.table(tables.MODELS.name)
        self._cache_s = settings.ingest.model_cache_s
        self._cache: dict[str, tuple[float, Model]] = {}

    async def get_model(self, model_version: str) -> Model:
        """The model version as it is now.

        Raises:
            NotFound: it was never written to.
        """
        reply = await self._dynamo.call(
            "get_item",
            TableName=self._table,
            Key=key(model_version=model_version),
            ConsistentRead=True,
        )
        if "Item" not in reply:
            raise NotFound(f"there is no model version {model_version!r}")
        return self._remember(MODEL_CODEC.decode(reply["Item"]))

    async def known_model(self, model_version: str) -> Model:
        """The model version as it was a few seconds ago at the most.

        Good for what its first write fixed: dimension, metric, shards.

        Raises:
            NotFound: it was never written to.
        """
        cached = self._cache.get(model_version)
        if cached is not None and cached[0] > monotonic():
            return cached[1]
        return await self.get_model(model_version)

    async def list_models(self) -> list[Model]:
        """Every model version, by name."""
        models: list[Model] = []
        start: dict[str, object] = {}
        while True:
            reply = await self._dynamo.call("scan", TableName=self._table, **start)
            models += [MODEL_CODEC.decode(item) for item in reply["Items"]]
            if "LastEvaluatedKey" not in reply:
                return sorted(models, key=lambda model: model.model_version)
            start = {"ExclusiveStartKey": request_item(reply["LastEvaluatedKey"])}

    async def create_model(
        self, model_version: str, dimension: int, metric: Metric, shards: int
    ) -> Model:
        """The model version, made now unless another write was first; then that one's."""
        model = Model(
            model_version=model_version,
            dimension=dimension,
            metric=metric,
            shards=shards,
            created_at=timestamp(now()),
        )
        try:
            await self._dynamo.call(
                "put_item",
                TableName=self._table,
                Item=MODEL_CODEC.encode(model),
                **expressions(condition=missing("model_version")),
            )
        except ConditionFailed:
            return await self.get_model(model_version)
        return self._remember(model)

    def _remember(self, model: Model) -> Model:
        self._cache[model.model_version] = (monotonic() + self._cache_s, model)
        return model
