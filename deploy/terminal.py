"""How answers are shown on a terminal."""

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

_WIDTH_ELSEWHERE = 200


def standard_output() -> Console:
    """A console on standard output, which in a file or pipe breaks no cell at 80 characters."""
    console = Console()
    return console if console.is_terminal else Console(width=_WIDTH_ELSEWHERE)


def neighbor_table(answer: dict[str, Any]) -> Table:
    """Neighbours as a table. Ids are shown as they are: they may look like markup."""
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("product_id", overflow="fold", min_width=24)
    table.add_column("score", justify="right")
    for entry in answer["neighbors"]:
        table.add_row(Text(str(entry["product_id"])), f"{entry['score']:.4f}")
    return table


def index_line(index: dict[str, Any]) -> str:
    """What an answer says of the index it came from."""
    recall = index.get("recall")
    quality = "" if recall is None else f", recall {recall:.3f}"
    fresh = index.get("fresh")
    changes = "" if fresh is None else f", {fresh} rows changed since"
    return f"index {index.get('build_id')}, built {index.get('built_at')}{quality}{changes}"
