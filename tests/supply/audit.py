"""`make audit`: known vulnerabilities of what K9 runs with, where their data can be reached.

`python -m tests.supply.audit PIP_AUDIT REQUIREMENTS`. Exits 1 for a vulnerability; where the data
cannot be reached it says so in one line and exits 0.
"""

import re
import subprocess
import sys
from typing import Final

import msgspec

_UNREACHABLE: Final = re.compile(
    r"connection|timed? ?out|unreachable|resolve|proxy|ssl|certificate|http error|service error",
    re.IGNORECASE,
)


class Vulnerability(msgspec.Struct):
    """One of a package's."""

    id: str
    fix_versions: list[str] = []


class Dependency(msgspec.Struct):
    """As pip-audit lists it."""

    name: str
    version: str = ""
    vulns: list[Vulnerability] = []
    skip_reason: str | None = None


class Found(msgspec.Struct):
    """All that pip-audit prints."""

    dependencies: list[Dependency]


def verdict(out: bytes, error: str) -> tuple[int, str]:
    """The exit status, and what is printed, of pip-audit's output and its messages.

    Raises:
        ValueError: it failed for another reason than the network.
    """
    try:
        found = msgspec.json.decode(out, type=Found).dependencies
    except msgspec.DecodeError:
        reason = (error.strip().splitlines() or ["no message"])[-1]
        if not _UNREACHABLE.search(error):
            raise ValueError(f"pip-audit failed: {reason}") from None
        return 0, f"skipped: the data of pip-audit cannot be reached ({reason[:160]})"
    looked_up = [each for each in found if each.skip_reason is None]
    if not looked_up:
        return 0, (
            f"skipped: the package index that is reached here knows none of {len(found)} packages, "
            "so there is no data on vulnerabilities"
        )
    lines = [
        f"{each.name} {each.version}: {v.id}, fixed in {', '.join(v.fix_versions) or 'no version'}"
        for each in looked_up
        for v in each.vulns
    ]
    lines += [f"not audited: {each.name}: {each.skip_reason}" for each in found if each.skip_reason]
    known = sum(len(each.vulns) for each in looked_up)
    lines.append(f"{len(looked_up)} packages audited, {known} known vulnerabilities")
    return (1 if known else 0), "\n".join(lines)


def main(program: str, requirements: str) -> int:
    """Runs pip-audit on a lock; the exit status."""
    words = [program, "--disable-pip", "--require-hashes", "--progress-spinner=off"]
    words += ["--timeout=10", "--format=json", "-r", requirements]
    run = subprocess.run(words, capture_output=True, check=False)
    try:
        status, text = verdict(run.stdout, run.stderr.decode())
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{text}\n")
    return status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
