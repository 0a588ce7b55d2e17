"""Types are made ready for msgspec where modules are imported, before there are threads.

msgspec looks at a Struct's fields when it first decodes one, and other threads see that half done:
the process dies with SIGSEGV (msgspec 0.22; two model versions that were loaded at once did it).
"""

import ast
import asyncio
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

ROOT = Path(__file__).parents[2]
AT_ONCE = """
import sys, threading
from core.errors import Corrupt
from core.index.manifest import Manifest, decode_manifest

last = Manifest.__struct_fields__[-1]  # looked at last

def decode():
    together.wait()
    try:
        decode_manifest(b'{"%s": 1}' % last.encode())
    except Corrupt:
        pass

sys.setswitchinterval(1e-6)
together = threading.Barrier(8)
threads = [threading.Thread(target=decode) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def test_no_type_is_made_ready_at_its_first_use() -> None:
    """Whatever is decoded has a `Decoder` of its own in its module."""
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for package in ("api", "core", "deploy", "worker")
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "decode"
        and any(each.arg == "type" for each in node.keywords)
    ]
    assert found == []


async def test_threads_decode_their_first_manifests_at_once() -> None:
    """As an API that starts with several model versions does."""
    processes = [
        await asyncio.create_subprocess_exec(sys.executable, "-c", AT_ONCE, cwd=ROOT, stderr=PIPE)
        for _ in range(3)
    ]
    for process in processes:
        _, errors = await process.communicate()
        assert process.returncode == 0, errors.decode()
