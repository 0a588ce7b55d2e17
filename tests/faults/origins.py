"""`python -m tests.faults.origins`: strangers and foreign pages try a real `k9 dev`.

Exits 1 when any of them comes through. The pages need Chromium; without it they are left out, and
a line says so.
"""

import asyncio
import sys
import tempfile
from pathlib import Path

from deploy.local.files import read_stack
from tests.e2e.dev import running_dev
from tests.faults import browser
from tests.faults.attempts import Target, owned, try_all

Tried = list[tuple[str, str | None]]


async def try_browser(target: Target, directory: Path) -> Tried:
    """What foreign pages come to in Chromium; empty where it is not installed."""
    binary = browser.chromium()
    if binary is None:
        return []
    with owned(target) as owner:
        before = owner.tables()
        tried: Tried = []
        for path in ("/", f"/{target.pool_id}/.well-known/jwks.json"):
            dom = await browser.read_rebound(binary, target, path, directory / "rebound")
            seen = "read it" if "<Name>" in dom or '"keys"' in dom else None
            tried.append((f"read {path} by DNS rebinding", seen))
        # Its last attempt would leave nothing to read in an emulator that obeys.
        shown = await browser.try_page(binary, target, directory / "page")
        tried += [
            (name, None if text == "unreadable" else text[:60]) for name, text in shown.items()
        ]
        kept = before and owner.tables() == before and not owner.functions()
        return [*tried, ("change what there is", None if kept else "changed")]


async def _run() -> int:
    with tempfile.TemporaryDirectory(prefix="k9-origins-") as name:
        directory = Path(name)
        async with running_dev(directory, "--empty") as dev:
            await dev.until("ready in")
            data = directory / ".k9"
            stack = read_stack(data)
            if stack is None:
                raise RuntimeError(f"k9 dev wrote no file of itself:\n{dev.output}")
            target = Target.of(stack, data)
            pages = await try_browser(target, directory)
            tried = await asyncio.to_thread(try_all, target)
    failed = _report("a client", tried)
    if pages:
        failed += _report("a page in Chromium", pages)
    else:
        print("no page was tried: none of " + ", ".join(browser.NAMES) + " is installed")
    return 1 if failed else 0


def _report(who: str, tried: Tried) -> int:
    for name, through in tried:
        print(
            f"{'REFUSED' if through is None else 'CAME THROUGH'}  {who}: {name}"
            f"{'' if through is None else f': {through}'}"
        )
    failed = sum(through is not None for _, through in tried)
    print(f"{who}: {len(tried) - failed} of {len(tried)} attempts refused\n")
    return failed


if __name__ == "__main__":
    sys.exit(asyncio.run(_run()))
