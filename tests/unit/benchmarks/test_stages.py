"""A look counts for the innermost function that has a step."""

from pathlib import Path

from tests.benchmarks.stages import steps_of

_LOOP = "main (api/process.py:1);Runner.run (asyncio/runners.py:118)"
_SEARCH = f"{_LOOP};_search (api/fast_path.py:66);Searcher.search_one (core/search.py:186)"


def test_looks_are_counted_by_step(tmp_path: Path) -> None:
    """Of the event loop's thread alone; what has no step of its own is between."""
    recorded = tmp_path / "stacks"
    recorded.write_text(
        f"{_LOOP} 5\n"
        f"{_SEARCH};Searcher.candidates (core/search.py:1);IndexHNSW.search (faiss.py:2) 7\n"
        f"{_SEARCH};Searcher.rerank (core/search.py:3);_top (core/search.py:4) 3\n"
        f"{_SEARCH} 2\n"
        "Thread.run (threading.py:982);LoopProbe._measure (core/stalls.py:9) 100\n"
    )
    assert steps_of(recorded) == {
        "event loop, kernel's part of reading": 5,
        "FAISS": 7,
        "ranked again in float64": 3,
        "calls between": 2,
    }
