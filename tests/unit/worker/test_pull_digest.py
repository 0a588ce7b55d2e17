"""Rows that changed shortly before a pull are known again."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from core.models import Embedding, StoredAttributes
from worker.building.pull_digest import PullDigest

TIMES = [f"2026-01-01T00:00:0{second}.000000Z" for second in range(10)]
SINCE, LATER = TIMES[3], TIMES[6]

rows = st.lists(
    st.builds(
        lambda name, at, gone: Embedding(name, "m", None, 0, at, at if gone else None),
        st.sampled_from(["a", "b", "ü"]),
        st.sampled_from(TIMES),
        st.booleans(),
    ),
    max_size=8,
)


def digest_of(*pages: list[Embedding]) -> PullDigest:
    """The digest of these pages."""
    digest = PullDigest(SINCE, LATER)
    for page in pages:
        digest.append(page)
    return digest


@given(rows, rows)
def test_the_same_rows_are_the_same_in_any_order(
    first: list[Embedding], then: list[Embedding]
) -> None:
    """Pages come as shards give them; rows that changed earlier make no difference."""
    old = [Embedding("old", "m", None, 0, TIMES[0])]
    one, other = digest_of(first, then, old), digest_of([*then[::-1], *first])
    assert (one.recent_rows(), one.changed) == (other.recent_rows(), other.changed)
    changed = [row for row in first + then if row.updated_at >= LATER]
    assert one.changed == len(changed)


@given(rows, rows)
def test_other_rows_are_others(first: list[Embedding], then: list[Embedding]) -> None:
    """Another id, another time, a deletion, one more or one less."""

    def key(row: Embedding) -> tuple[str, str, str]:
        return row.product_id, row.updated_at, row.deleted_at or ""

    late = [sorted(key(row) for row in page if row.updated_at >= SINCE) for page in (first, then)]
    assert (late[0] == late[1]) == (digest_of(first).recent_rows() == digest_of(then).recent_rows())


def test_attributes_are_known_by_their_times_and_removal() -> None:
    """Those changed earlier make no difference, and a removal is another change than a write."""
    stored = StoredAttributes("a", "{}", LATER)
    removed, early = msgspec.structs.replace(stored, text=""), StoredAttributes("a", "{}", TIMES[0])
    digests = []
    for page in ([], [early], [stored], [removed], [stored, removed], [removed, early, stored]):
        digest = PullDigest(SINCE, LATER)
        digest.append_attributes(page)
        digests.append((digest.recent_rows(), digest.changed))
    assert digests[0] == digests[1]
    assert digests[4] == digests[5]
    assert [changed for _, changed in digests] == [0, 0, 1, 1, 2, 2]
    assert len({recent.digest for recent, _ in digests}) == 4
