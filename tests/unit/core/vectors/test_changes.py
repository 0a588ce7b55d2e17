"""What changed between two versions: counted by product, and fair to a catalogue that grows."""

import numpy as np
import pytest

from core.vectors.arrays import Floats
from core.vectors.changes import NAMED_MAX, Changes, changes
from core.vectors.matrix import exact_matrix


def rows(count: int, seed: int = 1) -> Floats:
    """Unit rows (count, 8)."""
    made = np.random.default_rng(seed).standard_normal((count, 8)).astype(np.float32)
    made /= np.linalg.norm(made, axis=1, keepdims=True)
    return made


def names(count: int, first: int = 0) -> list[bytes]:
    """Ids in ascending order."""
    return [f"p{row:05d}".encode() for row in range(first, first + count)]


def compared(
    before: tuple[list[bytes], Floats], after: tuple[list[bytes], Floats], k: int = 10
) -> Changes:
    """What changed between two catalogues, by their exact matrices."""
    then, now = (
        exact_matrix(vectors, "cosine", k, lambda _: None).neighbors
        for _, vectors in (before, after)
    )
    return changes(("b-1", before[0], then), after[0], now, lambda _: None)


def test_the_same_rows_change_nothing() -> None:
    """All in common, nothing added, nothing gone, nobody named."""
    same = names(60), rows(60)
    found = compared(same, same)
    assert (found.common, found.added, found.removed, found.compared) == (60, 0, 0, 60)
    assert (found.overlap, found.most_changed, found.k) == (1.0, (), 10)
    assert found.build_id == "b-1"


def test_a_catalogue_that_grows_has_not_changed() -> None:
    """Ten times the products push neighbours off the lists; those left are the same."""
    vectors = rows(600)
    found = compared((names(60), vectors[:60]), (names(600), vectors))
    assert (found.added, found.removed, found.overlap) == (540, 0, 1.0)
    assert found.added_ids == tuple(f"p{row:05d}" for row in range(60, 60 + NAMED_MAX))


def test_products_that_are_gone_change_no_others() -> None:
    """The lists of those that stay are compared without them."""
    vectors = rows(100)
    found = compared((names(100), vectors), (names(80, 20), vectors[20:]))
    assert (found.common, found.removed, found.overlap) == (80, 20, 1.0)
    assert found.removed_ids[0] == "p00000"


def test_other_vectors_are_other_neighbours() -> None:
    """Vectors of another model have almost nothing in common, and the worst are named."""
    found = compared((names(500), rows(500)), (names(500), rows(500, seed=2)))
    assert found.overlap is not None
    assert found.overlap < 0.1
    assert len(found.most_changed) == NAMED_MAX
    assert found.most_changed[0].overlap == 0.0


def test_one_changed_product_is_the_one_named() -> None:
    """It keeps few neighbours, and others lose it alone."""
    vectors = rows(200)
    after = vectors.copy()
    after[7] = -after[7]
    found = compared((names(200), vectors), (names(200), after))
    assert found.most_changed[0].product_id == "p00007"
    assert found.overlap is not None
    assert 0.9 < found.overlap < 1.0


def test_overlap_is_what_a_plain_count_says() -> None:
    """Held against sets, product by product, with products added and gone."""
    first, second = rows(150, seed=3), rows(150, seed=3)
    second[:30] = rows(30, seed=4)
    before, after = (names(140), first[:140]), (names(140, 10), second[10:])
    found = compared(before, after)
    known = set(before[0]) & set(after[0])
    shares = []
    lists = []
    for ids, vectors in (before, after):
        near = exact_matrix(vectors, "cosine", 10, lambda _: None).neighbors
        lists.append(
            {ids[row]: [ids[n] for n in near[row] if ids[n] in known] for row in range(len(ids))}
        )
    for product_id in known:
        then, now = (result_of[product_id] for result_of in lists)
        length = min(len(then), len(now))
        if length:
            shares.append(len(set(then[:length]) & set(now[:length])) / length)
    assert found.compared == len(shares)
    assert found.overlap == pytest.approx(np.mean(shares))


def test_nothing_in_common_is_no_overlap() -> None:
    """Another catalogue altogether; and one row each, which has no neighbour to compare."""
    found = compared((names(20), rows(20)), (names(20, 50), rows(20)))
    assert (found.common, found.overlap, found.compared) == (0, 0.0, 0)
    alone = compared((names(1), rows(1)), (names(1), rows(1)))
    assert (alone.common, alone.overlap, alone.kept) == (1, None, 1.0)


def test_what_is_gone_keeps_nothing() -> None:
    """The share of the version before that is still answered counts the products that went."""
    found = compared((names(100), rows(100)), (names(80, 20), rows(100)[20:]))
    assert (found.overlap, found.kept) == (1.0, 0.8)
    one = compared((names(50), rows(50)), (names(50, 49), rows(50)))
    assert (one.overlap, one.kept) == (None, 0.02)
