"""What generators make of the OpenAPI document: clients that work, and schemathesis as it comes."""

import asyncio
import hashlib
import importlib
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from core.settings import Settings
from tests.api.fuzz_target import MODEL, Target, running_target
from tests.api.pool import Pool
from tests.api.schemathesis_cli import run_schemathesis

_ROOT = Path(__file__).parents[2]
_TYPESCRIPT = Path(__file__).with_name("typescript")
_SPARE = 4

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
async def target(
    api_settings: Settings, pool: Pool, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Target]:
    """An API and a worker, with rows and builds."""
    directory = tmp_path_factory.mktemp("generated")
    async with running_target(api_settings, pool, directory, spare=_SPARE) as running:
        yield running


@pytest.fixture(scope="module")
async def document(target: Target, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The document that it serves, as a file."""
    async with httpx.AsyncClient() as client:
        reply = await client.get(f"{target.known.url}/openapi.json")
    path = tmp_path_factory.mktemp("document") / "openapi.json"
    path.write_bytes(reply.content)
    return path


def test_titles_are_unique_and_servers_named(document: Path) -> None:
    """Generators name their models by the one, and send requests to the other."""
    read = msgspec.json.decode(document.read_bytes())
    titles = list(_titles(read["components"])) + list(_titles(read["paths"]))
    assert len(titles) > 30
    assert sorted(titles) == sorted(set(titles))
    assert [server["url"] for server in read["servers"]] == ["/"]


def _titles(part: Any) -> Iterator[str]:
    """Those of all schemas below; a property may be called `title` too, and is no text."""
    if isinstance(part, dict):
        if isinstance(part.get("title"), str) and ("type" in part or "properties" in part):
            yield part["title"]
        for each in part.values():
            yield from _titles(each)
    elif isinstance(part, list):
        for each in part:
            yield from _titles(each)


def test_a_default_is_what_the_service_does_without_the_parameter(document: Path) -> None:
    """A generated client sends defaults: the metric's is the model version's own, so there is none.

    The other defaults are those of every model version.
    """
    found: dict[str, set[Any]] = {}
    for path in msgspec.json.decode(document.read_bytes())["paths"].values():
        for operation in path.values():
            for parameter in operation["parameters"]:
                if "default" in parameter["schema"]:
                    found.setdefault(parameter["name"], set()).add(parameter["schema"]["default"])
    assert found == {"k": {10}, "limit": {20}, "vectors": {True}}


def test_a_python_client_is_generated_and_works(
    target: Target, document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writes to a model of another metric than the default, searches, and keeps reports."""
    (tmp_path / "config.yml").write_text("post_hooks: []\n")
    command: list[str | Path] = ["generate", "--path", document, "--output-path", tmp_path / "made"]
    made = subprocess.run(
        [_program("openapi-python-client"), *command, "--config", tmp_path / "config.yml"],
        capture_output=True,
        text=True,
        check=True,
    )
    # It knows no msgpack, for which it has JSON beside it; all else it takes.
    said = re.findall(r"^(?:WARNING|ERROR) .*\n\n(.*)$", made.stdout + made.stderr, re.MULTILINE)
    assert set(said) <= {"Unsupported content type application/msgpack"}
    assert "Unable to parse" not in made.stdout + made.stderr
    monkeypatch.syspath_prepend(tmp_path / "made")
    client: Any = importlib.import_module("k9_client").AuthenticatedClient(
        base_url=target.known.url, token=target.known.operator
    )
    with client:
        _use_vectors(client)
        _use_reports(client)


def _use_vectors(client: Any) -> None:
    models = importlib.import_module("k9_client.models")
    store = _operation("embeddings", "models_model_version_embeddings_product_id_store")
    body = models.ModelsModelVersionEmbeddingsProductIdStoreJsonBody(vector=[1.0, 2.0, 3.0])
    for name in ("m-ip", "m-l2", "m-new"):
        stored = store.sync_detailed(name, "a/b", client=client, body=body)
        assert stored.status_code in {200, 201}, stored.content
        assert (stored.parsed.product_id, stored.parsed.dimension) == ("a/b", 3)
    search = _operation("search", "models_model_version_search_search")
    by_product = models.ModelsModelVersionSearchSearchJsonSearchByProduct
    question = by_product(product_id="pandas", k=3)
    found = search.sync(MODEL, client=client, body=question)
    assert len(found.neighbors) == 3
    assert found.index.build_id
    neighbors = _operation("search", "models_model_version_products_product_id_neighbors_neighbors")
    assert len(neighbors.sync(MODEL, "pandas", client=client, k=2).neighbors) == 2
    missing = search.sync(MODEL, client=client, body=by_product(product_id="none"))
    assert (missing.status, str(missing.type_)) == (404, "not-found")


def _use_reports(client: Any) -> None:
    models = importlib.import_module("k9_client.models")
    create = _operation("reports", "reports_create")
    made = create.sync(client=client, body=models.ReportsCreateBody(title="of a client"))
    assert made.title == "of a client"
    change = _operation("reports", "reports_report_id_change")
    body = models.ReportsReportIdChangeBody(title="changed", favorites=["pandas"])
    changed = change.sync_detailed(made.id, client=client, body=body, if_match='"0"')
    assert changed.status_code == 412
    changed = change.sync(made.id, client=client, body=body)
    assert (changed.title, changed.favorites) == ("changed", ["pandas"])
    page = _operation("reports", "reports_get_page").sync(client=client, limit=1)
    assert [report.id for report in page.items] == [made.id]
    delete = _operation("reports", "reports_report_id_delete")
    assert delete.sync_detailed(made.id, client=client).status_code == 204


def _operation(tag: str, name: str) -> Any:
    return importlib.import_module(f"k9_client.api.{tag}.{name}")


def _program(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


@pytest.mark.skipif(shutil.which("npm") is None, reason="needs node and npm, which are not here")
def test_a_typescript_client_compiles(document: Path, tmp_path: Path) -> None:
    """Under `strict`, with what must not compile marked as an error that is expected."""
    modules = _installed(_ROOT / ".venv" / "typescript")
    shutil.copy(_TYPESCRIPT / "client.ts", tmp_path)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    types = tmp_path / "k9.ts"
    _run_node(modules, "openapi-typescript", document, "-o", types, "--alphabetize")
    options = ["--strict", "--noEmit", "--target", "es2022", "--module", "nodenext"]
    # What TypeScript itself declares of browsers was checked by its makers.
    options += ["--lib", "es2022,dom", "--skipLibCheck"]
    _run_node(modules, "tsc", *options, tmp_path / "client.ts")


def _installed(cache: Path) -> Path:
    """The locked packages, installed once for each lock file."""
    lock = (_TYPESCRIPT / "package-lock.json").read_bytes()
    directory = cache / hashlib.sha256(lock).hexdigest()[:16]
    modules = directory / "node_modules"
    if not (modules / ".package-lock.json").exists():
        directory.mkdir(parents=True, exist_ok=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(_TYPESCRIPT / name, directory)
        command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"npm ci could not install the locked packages: {done.stderr}"
    return modules


def _run_node(modules: Path, name: str, *arguments: str | Path) -> None:
    done = subprocess.run(
        [modules / ".bin" / name, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


async def test_schemathesis_as_it_comes_finds_nothing(target: Target, tmp_path: Path) -> None:
    """Its own command without a plugin, in short: `make fuzz` runs it for longer."""
    known = target.known
    found = await asyncio.to_thread(
        run_schemathesis, known.url, known.operator, tmp_path, examples=3, seed=1, coverage=False
    )
    assert not found.failures
    assert found.errors == ()
    assert found.cases > 200
