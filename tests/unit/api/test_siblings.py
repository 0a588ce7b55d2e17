"""The metrics of several processes as one text."""

from functools import partial

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as openmetrics_families,
)
from prometheus_client.parser import text_string_to_metric_families

from api.server.siblings import merged


def registry_of(process: str, value: float) -> CollectorRegistry:
    """A process's metrics: one of the same labels in all, and one that it alone has."""
    registry = CollectorRegistry()
    Counter("asked", "How often.", ["process"], registry=registry).labels(process).inc(value)
    Gauge(f"own_{process}", 'Has "quotes", a # HELP and \n two lines.', registry=registry).set(1)
    return registry


@pytest.mark.parametrize(
    ("write", "parse"),
    [
        (generate_latest, text_string_to_metric_families),
        (partial(openmetrics.generate_latest), openmetrics_families),
    ],
    ids=["prometheus", "openmetrics"],
)
def test_a_family_is_one_with_the_samples_of_all(write: object, parse: object) -> None:
    """A parser of the format takes it, and nothing is lost."""
    assert callable(write)
    assert callable(parse)
    texts = [write(registry_of("0", 3)), write(registry_of("1", 4))]
    families = {family.name: family for family in parse(merged(texts).decode())}
    counted = {
        sample.labels["process"]: sample.value
        for sample in families["asked"].samples
        if sample.name == "asked_total"
    }
    assert counted == {"0": 3.0, "1": 4.0}
    assert families["asked"].documentation == "How often."
    assert {"own_0", "own_1"} <= families.keys()


def test_one_exposition_stays_as_it_is() -> None:
    """In both formats."""
    for write in (generate_latest, openmetrics.generate_latest):
        text = write(registry_of("0", 3))
        assert merged([text]) == text
