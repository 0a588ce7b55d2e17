"""The sizes that the cost table is computed from."""

from tests.benchmarks.costs import index_of, item_size, sizes


def test_an_item_is_sized_as_dynamodb_does() -> None:
    """Names and strings in UTF-8, a byte for two digits and one more, bytes as they are."""
    assert item_size({"id": {"S": "Grüße"}}) == 2 + 7
    assert item_size({"n": {"N": "-1234"}}) == 1 + 2 + 1
    assert item_size({"n": {"N": "384"}, "v": {"B": b"\0" * 1536}}) == (1 + 2 + 1) + (1 + 1536)


def test_the_family_follows_the_memory() -> None:
    """As in a build: scanned, then a graph, then codes, then nothing."""
    assert index_of(5_000, 0) == ("exact", 0)
    families = []
    for limit in (10**11, 3 * 10**9, 10**6):
        chosen = index_of(10_000_000, limit)
        families.append(chosen and chosen[0])
    assert families == ["hnsw_sq8", "ivf_pq", None]


def test_sizes_are_fargates() -> None:
    """Processors, and memory that goes with them: 2 to 8 GB a vCPU, at most 30 GB for four."""
    allowed = {1: (2, 8), 2: (4, 16), 4: (8, 30), 8: (16, 60), 16: (32, 120)}
    for size in sizes():
        least, most = allowed[int(size.vcpu)]
        assert least <= size.memory_gb <= most
        assert 21 <= size.disk_gb <= 200
        assert size.index_bytes < size.loaded_bytes < size.memory_gb * 2**30
