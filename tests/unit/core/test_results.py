"""Results as they are stored under an idempotency key: what was stored before is read today."""

from pathlib import Path
from typing import get_args

import msgspec

from core.errors import FieldError
from core.models import Build, BuildParameters, Model, Progress, Report, User, Watermark
from core.results import (
    CurrentBuild,
    DeletedEmbedding,
    DeletedReport,
    LoadedBuild,
    ModelSummary,
    Refusal,
    Result,
    StoredBatch,
    StoredEmbedding,
)

GOLDEN = Path(__file__).parents[2] / "golden" / "results.jsonl"
"""One result a line. A line is never changed: a new form of a result gets a line of its own."""

MOMENT = "2026-01-01T00:00:00.000000Z"
RESULTS: tuple[Result, ...] = (
    User("u1", MOMENT, MOMENT, "Ada", "a@b.example", "https://b.example", '{"a": 1.0}', 10**37),
    Report("r1", "u1", "Ünï", MOMENT, MOMENT, "Ada", "2026-01-01", "ref", ("b", "a"), 3),
    DeletedReport(),
    StoredEmbedding("a/b é", 384, MOMENT, 1767225600000000, created=True),
    DeletedEmbedding("a/b", MOMENT, 0),
    StoredBatch(250, Watermark(MOMENT, None, 1767225600000000)),
    Build(
        "b1",
        "m",
        "cancelled",
        MOMENT,
        BuildParameters(0.9, 30, deterministic=True, force=True),
        Progress("index", 5, 10),
        fence=2,
        started_at=MOMENT,
        ended_at=MOMENT,
        generation=1767225600000000,
    ),
    ModelSummary(
        Model(
            "m", 384, "cosine", 8, MOMENT, 1, "b1", 2, pinned=True, generation=1, deleting_at=None
        ),
        CurrentBuild("b1", MOMENT, 250, 1, "hnsw_flat", 0.995, MOMENT),
        LoadedBuild("b1", 250, 4096, MOMENT),
    ),
    ModelSummary(Model("m", 384, "l2", 8, MOMENT), None, None),
    Refusal("Invalid", "title is required", (FieldError("title", "is required"),)),
    Refusal("NotFound", "there is no such report"),
)


def test_every_result_is_stored_as_ever() -> None:
    """Its JSON is a line of the golden file, whose every line can be read."""
    lines = GOLDEN.read_bytes().splitlines()
    read = [msgspec.json.decode(line, type=Result) for line in lines]
    assert [result for result in RESULTS if result not in read] == []
    assert [each for each in map(msgspec.json.encode, RESULTS) if each not in lines] == []


def test_there_is_a_line_for_each_kind_of_result() -> None:
    """So that one that is added is written down too."""
    assert {type(result) for result in RESULTS} == set(get_args(Result))
