"""The nearest rows of every row, exactly: each product of two blocks of rows serves both of them.

The score of a pair is the same both ways, so half of all products are enough. As in `exact`, fast
float32 products find the candidates, float64 scores rank them. A row has so many candidates as may
be among its best by the error of a float32 score; one with too many, as in a crowd of near copies,
is searched for by float64 products with all rows.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations, pairwise
from threading import Lock
from typing import Final

import numpy as np
from numpy.typing import NDArray

from core.vectors.arrays import Floats, Ints, squared_norms
from core.vectors.exact import CandidateSpace, float64_top_k, rescore, top_k_per_query

_BLOCK_ROWS: Final = 2048
"""Rows of a block: a thread has one product of two blocks at a time, of 16 MiB."""
_ROOM_MIN: Final = 48
"""Candidates kept of a row beyond its best: this many, or a quarter of its best if that is more."""
_CROWDED_SHARE: Final = 0.5
"""Of this room: where more candidates cannot be ruled out, the row is in a crowd."""
_CROWDED_ROWS: Final = 512
"""Such rows searched for at a time."""
_REPORTED_PAIRS: Final = 16
"""Products between two reports of progress: about a second."""
_SCORED_ROWS: Final = 128
"""Rows whose candidates are scored together."""


def nearest_of_all(
    rows: Floats, k: int, space: CandidateSpace, threads: int, progress: Callable[[int], None]
) -> tuple[NDArray[np.int32], Floats]:
    """The k best rows of every row, itself among them, by (-score, row number).

    numpy's own threads are used besides: set OPENBLAS_NUM_THREADS to 1 for more than one thread.

    Args:
        rows: float32 (n, d), prepared, n at least 1; may be mapped from a file.
        k: how many.
        space: of these rows.
        threads: how many to use.
        progress: called with the number of rows that are done, n at the end.

    Returns:
        Row numbers int32 and scores float32, both (n, min(k, n)).
    """
    total = rows.shape[0]
    k = min(k, total)
    products = _Products(space.transform(rows), space)
    edges = np.linspace(0, total, -(-total // _BLOCK_ROWS) + 1, dtype=np.int64).tolist()
    blocks = [_Block(start, stop, k, space.uncertainty) for start, stop in pairwise(edges)]
    found = np.empty((total, k), dtype=np.int32)
    scores = np.empty((total, k), dtype=np.float32)

    def finish(block: _Block) -> None:
        part = block.rows
        found[part], scores[part] = block.best(rows, space)

    def search(numbers: Ints) -> None:
        found[numbers], scores[numbers] = float64_top_k(rows[numbers], rows, k, space.metric)

    with ThreadPoolExecutor(threads, "matrix") as pool:
        # Blocks with themselves first: what they rule out is not looked at in the others.
        pairs = [*((block, block) for block in blocks), *combinations(blocks, 2)]
        for done, _ in enumerate(pool.map(lambda pair: products.compare(*pair), pairs), 1):
            if done % _REPORTED_PAIRS == 0:
                progress(done * total // (len(pairs) + 1))
        for _ in pool.map(finish, blocks):
            pass
        crowded = np.flatnonzero(np.concatenate([block.crowded for block in blocks]))
        for _ in pool.map(search, np.array_split(crowded, -(-crowded.size // _CROWDED_ROWS) or 1)):
            pass
    progress(total)
    return found, scores


class _Products:
    """Products of blocks of transformed rows."""

    def __init__(self, transformed: Floats, space: CandidateSpace) -> None:
        self.transformed = transformed
        self._half_squares: Floats | None = None
        """float32 (n,), under `l2`: a product less those of both rows is the score's half."""
        if space.metric == "l2":
            self._half_squares = (squared_norms(transformed) / 2).astype(np.float32)

    def compare(self, one: "_Block", other: "_Block") -> None:
        """Gives each block the candidates that the other has for it."""
        scores = self.transformed[one.rows] @ self.transformed[other.rows].T
        if self._half_squares is not None:
            scores -= self._half_squares[other.rows]
            scores -= self._half_squares[one.rows, None]
        if one is other:
            one.start_with(scores)
            return
        one.offer(*_at_least(scores, one.least[:, None]), other.start)
        columns, lines, found = _at_least(scores, other.least[None])
        order = np.argsort(lines, kind="stable")
        other.offer(lines[order], columns[order], found[order], one.start)


def _at_least(scores: Floats, least: Floats) -> tuple[Ints, Ints, Floats]:
    """The lines, columns and values of the scores that are not below a bound."""
    flat = np.flatnonzero(scores >= least)
    lines, columns = np.divmod(flat, scores.shape[1])
    return lines, columns, scores.ravel()[flat]


class _Block:
    """Some consecutive rows, and the candidates of each that were found up to now."""

    def __init__(self, start: int, stop: int, k: int, uncertainty: float) -> None:
        """For rows from `start` until `stop`, of which the best k are wanted."""
        self.start = start
        self.rows = slice(start, stop)
        count = stop - start
        self._k = k
        self._uncertainty = uncertainty
        room = max(_ROOM_MIN, k // 4)
        self._places = k + room
        self._crowd = k + int(_CROWDED_SHARE * room)
        self._candidates = np.full((count, self._places), -1, dtype=np.int32)
        self._scores = np.full((count, self._places), -np.inf, dtype=np.float32)
        self._used = np.zeros(count, dtype=np.int64)
        """Places of each row that are taken, which are the first ones."""
        self.least = np.full(count, -np.inf, dtype=np.float32)
        """Below this score no row is among the best of each; rises as more are seen."""
        self.crowded = np.zeros(count, dtype=np.bool_)
        """The rows with more candidates than places."""
        self._lock = Lock()

    def start_with(self, scores: Floats) -> None:
        """Takes the scores (count, count) of the rows of this block with each other."""
        count = scores.shape[0]
        if count > self._k:
            self._rule_out(np.arange(count), np.partition(scores, count - self._k, axis=1))
        self.offer(*_at_least(scores, self.least[:, None]), self.start)

    def offer(self, lines: Ints, columns: Ints, scores: Floats, start: int) -> None:
        """Takes candidates for lines of this block, ascending, from the block that begins there."""
        numbers = (columns + start).astype(np.int32)
        with self._lock:
            while lines.size:
                first = np.flatnonzero(np.diff(lines, prepend=-1))
                counts = np.diff(first, append=lines.size)
                place = self._used[lines] + np.arange(lines.size) - np.repeat(first, counts)
                fits = place < self._places
                self._candidates[lines[fits], place[fits]] = numbers[fits]
                self._scores[lines[fits], place[fits]] = scores[fits]
                line = lines[first]
                self._used[line] = np.minimum(self._used[line] + counts, self._places)
                self._make_room(line[self._used[line] == self._places])
                left = ~fits & (scores >= self.least[lines])
                lines, numbers, scores = lines[left], numbers[left], scores[left]

    def _make_room(self, lines: Ints) -> None:
        """Drops candidates of full lines that can be ruled out; a crowded line takes no more."""
        if not lines.size:
            return
        scores = self._scores[lines]
        self._rule_out(lines, np.partition(scores, self._places - self._k, axis=1))
        stays = scores >= self.least[lines, None]
        order = np.argsort(~stays, axis=1, kind="stable")
        self._scores[lines] = np.take_along_axis(scores, order, axis=1)
        self._candidates[lines] = np.take_along_axis(self._candidates[lines], order, axis=1)
        self._used[lines] = np.count_nonzero(stays, axis=1)
        full = lines[self._used[lines] > self._crowd]
        self.crowded[full] = True
        self.least[full] = np.inf

    def _rule_out(self, lines: Ints, partitioned: Floats) -> None:
        """Raises the bound of lines to what their k-th best score allows, by its possible error."""
        kth = partitioned[:, -self._k].astype(np.float64)
        bound = np.nextafter((kth - self._uncertainty).astype(np.float32), np.float32(-np.inf))
        self.least[lines] = np.maximum(self.least[lines], bound)

    def best(self, rows: Floats, space: CandidateSpace) -> tuple[Ints, Floats]:
        """The best k of each line, by (-score, row number); of no meaning where crowded.

        Gives up the memory of the candidates: this is the last call.
        """
        order = np.argsort(-self._scores, axis=1)
        scores = np.take_along_axis(self._scores, order, axis=1)
        candidates = np.take_along_axis(self._candidates, order, axis=1)
        del self._scores, self._candidates
        self._rule_out(np.arange(scores.shape[0]), scores[:, ::-1])
        stays = scores >= self.least[:, None]
        counts = np.maximum(np.count_nonzero(stays, axis=1), self._k)
        found = np.empty((scores.shape[0], self._k), dtype=np.int64)
        # Lines with as many candidates are scored together: most have hardly more than k.
        by_count = np.argsort(counts, kind="stable")
        for part in np.array_split(by_count, -(-by_count.shape[0] // _SCORED_ROWS)):
            width = int(counts[part[-1]])
            wanted = np.where(stays[part, :width], candidates[part, :width], -1)
            exact = rescore(rows[self.start + part], rows, wanted, space.metric)
            found[part], scores[part, : self._k] = top_k_per_query(wanted, exact, self._k)
        return found, scores[:, : self._k]
