"""A version that was built beforehand, published on a site and served by the API on one core."""

from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from core import names
from core.index.files import INDEX
from core.models import BuildParameters, now, timestamp
from core.resources import Resources
from core.vectors.arrays import Floats
from tests.benchmarks.build import MATRIX_K, TARGET
from tests.benchmarks.exact import QUERIES, Truth
from tests.benchmarks.figures import Report
from tests.benchmarks.grown import ids_of
from tests.benchmarks.http_search import ROOT, run_raw
from tests.benchmarks.processes import Api, pss, serving
from tests.benchmarks.sent import (
    MODEL,
    TOGETHER,
    Request,
    queries_of,
    requests_of,
    run_wrk,
    write_script,
)
from tests.benchmarks.starting import Started, start_once
from tests.benchmarks.stock import store
from tests.faults.site import Site, open_site
from worker.building.builder import BuildResult, PullResult, assemble_manifest
from worker.building.protocol import BuildOutput
from worker.building.pull_digest import PullDigest

KINDS: Final = {
    "json": "searches",
    "msgpack": "searches",
    "many": "searches",
    "neighbors": "requests",
}
_STORED: Final = 100
"""Rows that the table has: a version is served from its own files."""
_LEASE_S: Final = 3600.0


async def publish(
    resources: Resources, directory: Path, output: BuildOutput, rows: dict[str, Floats]
) -> None:
    """Uploads the files of a version, and makes it current, as a worker does."""
    few = dict(list(rows.items())[:_STORED])
    await store(resources, MODEL, few)
    asked = BuildParameters(target_recall=TARGET, matrix_k=MATRIX_K)
    requested = await resources.build_service.request(MODEL, asked)
    build = await resources.builds.claim(requested.build_id, requested.fence, lease_s=_LEASE_S)
    model = await resources.models.get_model(MODEL)
    at = timestamp(now())
    digest = PullDigest(at, at).recent_rows()
    pulled = PullResult(directory, at, at, 0.0, digest)
    environment = resources.settings.environment
    prefix = names.version_prefix(environment, MODEL, build.build_id, build.fence)
    files = await resources.versions.upload(prefix, directory, output.files)
    manifest = assemble_manifest(build, model, pulled, BuildResult(directory, at, output), files)
    await resources.versions.put_manifest(prefix, manifest)
    await resources.promotions.publish(build, model, msgspec.to_builtins(manifest))


async def serve(
    vectors: Floats,
    directory: Path,
    output: BuildOutput,
    turns: int,
    seconds: float,
    report: Report,
) -> None:
    """Publishes, serves, measures in turns, reports.

    Args:
        vectors: float32 (n, d), the rows of the version.
        directory: with its files.
        output: of its build.
        turns: of everything.
        seconds: of each kind of request in a turn.
        report: takes the figures.
    """
    ids = ids_of(len(vectors))
    rows = dict(zip(ids, vectors, strict=True))
    queries = queries_of(rows)
    truth = Truth(ids, vectors, queries[:QUERIES])
    async with open_site(workers=(), K9_LEASE_S="180") as site:
        await site.parts["api"].stop()
        await publish(site.resources, directory, output, rows)
        made = requests_of(rows, queries)
        async with serving(site, 1) as api:
            url = f"http://127.0.0.1:{api.port}"
            token = site.pool.token("operators")
            report.add("API: recall@10", [await truth.recall_of(url, MODEL, token)])
            saved = site.directory / "queries.npy"
            np.save(saved, queries)
            await _measure(site, api, made, saved, turns, seconds, report)
            of_files, whole = pss(api)
        report.add("API: memory", [whole / 1e6], "MB")
        report.add("API: memory of the version", [of_files / 1e6], "MB")
        starts = [await start_once(site, ROOT, api.cache, queries[0]) for _ in range(turns + 1)]
    for field in Started.__struct_fields__:
        report.add(f"start: {field}", [getattr(start, field) for start in starts[1:]], "s")


async def _measure(
    site: Site,
    api: Api,
    made: dict[str, list[Request]],
    queries: Path,
    turns: int,
    seconds: float,
    report: Report,
) -> None:
    """Requests of each kind, and raw FAISS on the index that answers them, in turns."""
    token = site.pool.token("operators")
    scripts = {
        kind: write_script(site.directory, kind, api.port, token, made[kind]) for kind in KINDS
    }
    index = next(api.cache.rglob(INDEX), None)  # the family exact has none
    rates: dict[str, list[float]] = {}
    p99_ms: dict[str, list[float]] = {}
    for turn in range(turns + 1):  # the first warms up
        for kind, script in scripts.items():
            found = await run_wrk(script, api.port, seconds, kind)
            if found.errors:
                raise SystemExit(f"{kind}: {found.errors} requests failed")
            if turn:
                together = TOGETHER if kind == "many" else 1
                rates.setdefault(f"{kind}: {KINDS[kind]}", []).append(
                    together * 1e6 / found.each_us
                )
                p99_ms.setdefault(f"{kind}: p99", []).append(found.p99 / 1000)
        if index is not None and turn:
            raw = await run_raw(index.parent, queries, seconds)
            rates.setdefault("raw FAISS: searches", []).append(1e6 / raw.one)
            rates.setdefault("raw FAISS in batches: searches", []).append(1e6 / raw.many)
    for name, each in rates.items():
        report.add(name, each, "a second")
    for name, each in p99_ms.items():
        report.add(name, each, "ms")
