"""`schemathesis run` against a running API: its own command, without a plugin or a hook."""

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path(__file__).parents[2]
"""Where `schemathesis.toml` stands."""
_NO_MSGPACK = "No supported serializers for media types: application/msgpack"


@dataclass(frozen=True)
class Found:
    """What a run said."""

    output: str
    cases: int
    """How many it made."""
    failures: str
    """Its own account of them; empty where there are none."""
    errors: tuple[str, ...]
    """All but that it cannot write msgpack."""


def run_schemathesis(
    url: str, token: str, directory: Path, *, examples: int, seed: int, coverage: bool = True
) -> Found:
    """Runs it to the end; blocks meanwhile.

    Args:
        url: Of the API.
        token: An operator's.
        directory: For what it writes.
        examples: Cases an operation in each phase.
        seed: The same makes the same cases.
        coverage: Whether each constraint of the document is broken too, which takes longest.
    """
    options = ["--max-examples", str(examples), "--seed", str(seed), "--continue-on-failure"]
    options += ["--generation-database", "none", "--no-color"]
    options += ["--header", f"Authorization: Bearer {token}"]
    if not coverage:
        options += ["--phases", "examples,fuzzing,stateful"]
    options += ["--report", "ndjson", "--report-dir", str(directory)]
    done = subprocess.run(
        [Path(sys.executable).with_name("schemathesis"), "run", f"{url}/openapi.json", *options],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    output = done.stdout + done.stderr
    made = re.search(r"^ +([\d,]+) generated", output, re.MULTILINE)
    if made is None:
        raise RuntimeError(f"schemathesis did not run to its end:\n{output}")
    return Found(
        output=output,
        cases=int(made[1].replace(",", "")),
        failures=_section(output, "FAILURES"),
        errors=tuple(_errors(_section(output, "ERRORS"))),
    )


def _section(output: str, name: str) -> str:
    found = re.search(rf"^=+ {name} =+\n(.*?)^=+ [A-Z]+ =+$", output, re.MULTILINE | re.DOTALL)
    return found[1] if found else ""


def _errors(section: str) -> list[str]:
    """Each error under the operation that it is of."""
    parts = re.split(r"^_+ (.+?) _+\n", section, flags=re.MULTILINE)
    pairs = zip(parts[1::2], parts[2::2], strict=True)
    return [f"{name}: {text.strip()}" for name, text in pairs if _NO_MSGPACK not in text]
