"""`make release VERSION=x.y.z`: makes the annotated tag of a release, or refuses.

It refuses, and changes nothing, unless the tree is clean, pyproject.toml and the changelog have
that version, the tag is new, and `make check` is green. Pushing is left to whoever releases.
"""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Final

_VERSION: Final = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)")
_HEADING: Final = re.compile(r"^## (?P<name>.+)$", re.MULTILINE)
_UNRELEASED: Final = "Unreleased"


class Refused(Exception):
    """Why there is no release."""


def section_of(changelog: str, version: str) -> str:
    """The section of a version, which must be the newest, with nothing unreleased above it.

    Raises:
        Refused: it is not, or is empty.
    """
    headings = list(_HEADING.finditer(changelog))
    bodies = {}
    ends = [*(heading.start() for heading in headings[1:]), len(changelog)]
    for heading, end in zip(headings, ends, strict=False):
        bodies[heading["name"].strip()] = changelog[heading.end() : end].strip()
    if bodies.pop(_UNRELEASED, ""):
        raise Refused(f"CHANGELOG.md has lines under {_UNRELEASED}: move them to {version}")
    newest = next(iter(bodies), "no version")
    if newest.partition(" ")[0] != version:  # "1.2.3" or "1.2.3 - 2026-11-28"
        raise Refused(f"the newest section of CHANGELOG.md is {newest}, not {version}")
    if not bodies[newest]:
        raise Refused(f"the section {newest} of CHANGELOG.md is empty")
    return bodies[newest]


def release(directory: Path, version: str) -> str:
    """Makes the tag; how to push it.

    Raises:
        Refused: something is not as it must be.
    """
    if not _VERSION.fullmatch(version):
        raise Refused(f"VERSION is {version!r}: name one, as in make release VERSION=1.2.3")
    tag = f"v{version}"
    _check_clean(directory)
    stated = tomllib.loads((directory / "pyproject.toml").read_text())["project"]["version"]
    if stated != version:
        raise Refused(f"pyproject.toml has version {stated}, not {version}")
    notes = section_of((directory / "CHANGELOG.md").read_text(), version)
    if _git(directory, "tag", "--list", tag):
        raise Refused(f"there is a tag {tag} already")
    commit = _git(directory, "rev-parse", "HEAD")
    if subprocess.run([_found("make"), "check"], cwd=directory, check=False).returncode:
        raise Refused("make check is not green")
    _check_clean(directory)
    if _git(directory, "rev-parse", "HEAD") != commit:
        raise Refused("another commit was checked out while make check ran")
    message = f"K9 {version}\n\n{notes}"
    _git(directory, "tag", "--annotate", "--cleanup=verbatim", "--message", message, tag, commit)
    branch = _git(directory, "branch", "--show-current") or "HEAD:main"
    return (
        f"{tag} is made, on {commit[:12]}. To publish it: git push --atomic origin {branch} {tag}"
    )


def _check_clean(directory: Path) -> None:
    changed = _git(directory, "status", "--porcelain")
    if changed:
        raise Refused(f"the tree is not clean: {changed.splitlines()[0].strip()}")


def _git(directory: Path, *words: str) -> str:
    run = subprocess.run([_found("git"), *words], cwd=directory, capture_output=True, check=False)
    if run.returncode:
        reason = (run.stderr.decode().strip().splitlines() or ["no message"])[-1]
        raise Refused(f"git {words[0]}: {reason}")
    return run.stdout.decode().strip()


def _found(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        raise Refused(f"{program} is needed")
    return path


def main(version: str = "") -> int:
    """The exit status."""
    try:
        sys.stdout.write(f"{release(Path.cwd(), version)}\n")
    except Refused as error:
        sys.stderr.write(f"no release: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
