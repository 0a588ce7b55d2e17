import pytest

from deploy.aws import prices
from deploy.aws.costs import Consumption, monthly_cost
from deploy.aws.tables import TableDescription

_TABLE = TableDescription(
    "k9-embeddings-prod",
    "ACTIVE",
    indexes=("ModelVersionIndex",),
    size_bytes=10 * prices.GB,
    index_bytes=10 * prices.GB,
    recovery=True,
)


def test_a_table_on_demand_costs_its_size_and_its_units() -> None:
    """Storage of table and indexes, recovery of the table alone, and 30.4 days of today's units."""
    cost = monthly_cost(_TABLE, Consumption(read_units=1e6, write_units=2e6))
    assert cost.storage == pytest.approx(20 * 0.25)
    assert cost.recovery == pytest.approx(10 * 0.20)
    assert cost.requests == pytest.approx((1e6 * 0.125e-6 + 2e6 * 0.625e-6) * 730 / 24)
    assert cost.total == pytest.approx(cost.storage + cost.recovery + (cost.requests or 0))


def test_unknown_requests_are_not_free() -> None:
    """They are unknown, and the total is that of the size."""
    cost = monthly_cost(_TABLE, None)
    assert cost.requests is None
    assert cost.total == pytest.approx(7.0)


def test_a_provisioned_table_costs_its_units_whether_used_or_not() -> None:
    """By the hour."""
    table = TableDescription("t", "ACTIVE", provisioned=(100, 10))
    assert monthly_cost(table, None).total == pytest.approx((100 * 0.00013 + 10 * 0.00065) * 730)
