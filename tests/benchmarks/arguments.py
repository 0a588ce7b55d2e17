"""Arguments that the benchmarks of a running site have in common."""

import argparse
from pathlib import Path


def site_parser(doc: str | None, *, turns: int) -> argparse.ArgumentParser:
    """With a catalogue, how many of its rows, and how many turns; described by a docstring."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--file", type=existing, required=True, help="a catalogue as Parquet")
    parser.add_argument("--rows", type=int, default=100_000, help="of the file, at the most")
    parser.add_argument("--turns", type=int, default=turns)
    return parser


def existing(text: str) -> Path:
    """A file, by an absolute path that does not resolve links.

    Raises:
        ArgumentTypeError: there is none.
    """
    path = Path(text)
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"there is no file {path}")
    return path.absolute()
