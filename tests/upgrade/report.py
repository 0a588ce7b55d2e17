"""What was checked, as a table; a check that fails stops no other."""

import time
import traceback
from collections.abc import Awaitable, Callable

import msgspec


class Row(msgspec.Struct, frozen=True):
    """One check."""

    phase: str
    what: str
    result: str
    """`ok`, `FAILED`, or `cannot`: what the earlier release does not do."""
    seen: str


class Report:
    """The rows so far."""

    def __init__(self) -> None:
        self.phase = ""
        self.rows: list[Row] = []
        self._began = time.monotonic()

    def begin(self, phase: str) -> None:
        """The checks from now on belong to this phase."""
        self.phase = phase
        print(f"{time.monotonic() - self._began:6.1f} s  {phase}", flush=True)

    async def check(
        self, what: str, checking: Callable[[], Awaitable[str]], *, limit: bool = False
    ) -> None:
        """Runs a check, which returns what it saw or raises.

        It is a `limit` if it shows what the earlier release does not do, harmlessly.
        """
        try:
            seen = await checking()
        except Exception as error:  # noqa: BLE001 - whatever it is, the check failed
            place = traceback.extract_tb(error.__traceback__)[-1]
            seen = f"{type(error).__name__} ({_place(place)}): {error}"
            self._add("FAILED", what, seen)
        else:
            self._add("cannot" if limit else "ok", what, seen)

    def _add(self, result: str, what: str, seen: str) -> None:
        self.rows.append(Row(self.phase, what, result, seen))
        print(f"          {result:7}{what}: {seen[:400]}", flush=True)

    @property
    def failures(self) -> int:
        """How many checks failed."""
        return sum(row.result == "FAILED" for row in self.rows)

    def print(self) -> None:
        """The table, by phase, and what the earlier release cannot do."""
        width = max(len(row.what) for row in self.rows)
        phase = ""
        for row in self.rows:
            if row.phase != phase:
                phase = row.phase
                print(f"\n{phase}")
            print(f"  {row.result:7}{row.what:{width}}  {row.seen[:160]}")
        print("\nWhat the old release cannot do, beside the new one or after it:")
        for row in self.rows:
            if row.result == "cannot":
                print(f"  {row.what}: {row.seen}")


def _place(frame: traceback.FrameSummary) -> str:
    return f"{frame.filename.rpartition('/')[2]}:{frame.lineno}"
