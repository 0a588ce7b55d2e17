"""The page of metrics, the rules and the dashboard name what the code has."""

from tests.observability.page import PAGE, defined, rows, table_of


def test_the_page_lists_every_metric_as_it_is() -> None:
    """Name, type, labels and meaning; `make metrics-page` writes the table anew."""
    assert table_of(PAGE.read_text(encoding="utf-8")) == "\n".join(rows())


def test_every_metric_has_a_meaning_and_bounded_labels() -> None:
    """A sentence each; no label is an id, or what a caller may choose."""
    text = PAGE.read_text(encoding="utf-8")
    for name, metric in defined().items():
        assert len(metric._documentation) > 10, name  # noqa: SLF001
        assert metric._documentation.endswith("."), name  # noqa: SLF001
        for label in metric._labelnames:  # noqa: SLF001
            assert f"`{label}`" in text.partition("## All metrics")[0], (name, label)
