"""What the tables cost a month at today's rate: their size, and the units of the last day."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any, Final

import msgspec

from core.models import now
from core.settings import Settings
from deploy.aws import prices
from deploy.aws.attempts import attempt
from deploy.aws.clients import open_client
from deploy.aws.tables import TableDescription
from deploy.errors import CommandError

_DAY: Final = timedelta(days=1)
_PERIOD_S: Final = 3600
_METRICS: Final = ("ConsumedReadCapacityUnits", "ConsumedWriteCapacityUnits")


class Consumption(msgspec.Struct, frozen=True):
    """Units that a table and its indexes consumed in the last 24 hours."""

    read_units: float = 0.0
    write_units: float = 0.0


class MonthlyCost(msgspec.Struct, frozen=True):
    """US dollars a month for one table with its indexes."""

    storage: float
    recovery: float
    """Point-in-time recovery."""
    requests: float | None
    """Of the units consumed or provisioned; None where consumption is not known."""

    @property
    def total(self) -> float:
        """All that is known."""
        return self.storage + self.recovery + (self.requests or 0.0)


def monthly_cost(table: TableDescription, consumed: Consumption | None) -> MonthlyCost:
    """A table's cost, by its size as DynamoDB tells it, at the prices of `deploy.aws.prices`."""
    stored_gb = (table.size_bytes + table.index_bytes) / prices.GB
    recovery_gb = table.size_bytes / prices.GB if table.recovery else 0.0
    requests = None
    if table.provisioned is not None:
        reads, writes = table.provisioned
        hourly = reads * prices.DYNAMODB_READ_UNIT_HOUR + writes * prices.DYNAMODB_WRITE_UNIT_HOUR
        requests = hourly * prices.HOURS_A_MONTH
    elif consumed is not None:
        daily = (
            consumed.read_units * prices.DYNAMODB_READ_UNIT
            + consumed.write_units * prices.DYNAMODB_WRITE_UNIT
        )
        requests = daily * prices.DAYS_A_MONTH
    return MonthlyCost(
        stored_gb * prices.DYNAMODB_GB_MONTH,
        recovery_gb * prices.DYNAMODB_RECOVERY_GB_MONTH,
        requests,
    )


async def read_consumption(
    settings: Settings, described: list[TableDescription]
) -> dict[str, Consumption] | str:
    """The consumption of each table, by its full name; why it is not known, where it is not."""
    queries = list(_queries(described))
    if not queries:
        return {}
    end = now()
    try:
        async with open_client("cloudwatch", settings) as client:
            made = await attempt(
                client,
                "get_metric_data",
                MetricDataQueries=[query for _, _, query in queries],
                StartTime=end - _DAY,
                EndTime=end,
            )
    except CommandError as error:
        return str(error)
    if made.outcome != "ok":
        return f"CloudWatch: {made.code} {made.message}".strip()
    sums = {
        result["Id"]: sum(result["Values"]) for result in made.reply.get("MetricDataResults", [])
    }
    totals = {table.name: [0.0, 0.0] for table in described}
    for name, metric, query in queries:
        totals[name][_METRICS.index(metric)] += sums.get(query["Id"], 0.0)
    return {name: Consumption(reads, writes) for name, (reads, writes) in totals.items()}


def _queries(described: list[TableDescription]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """The table, the metric and the query of each sum: DynamoDB counts indexes on their own."""
    number = 0
    for table in described:
        for index in (None, *table.indexes):
            dimensions = [{"Name": "TableName", "Value": table.name}]
            if index is not None:
                dimensions.append({"Name": "GlobalSecondaryIndexName", "Value": index})
            for metric in _METRICS:
                number += 1
                named = {
                    "Namespace": "AWS/DynamoDB",
                    "MetricName": metric,
                    "Dimensions": dimensions,
                }
                stat = {"Metric": named, "Period": _PERIOD_S, "Stat": "Sum"}
                yield table.name, metric, {"Id": f"m{number}", "MetricStat": stat}
