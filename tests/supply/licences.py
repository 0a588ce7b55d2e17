"""`make licences`: the licence of every package that K9 runs with; fails on one not allowed.

`python -m tests.supply.licences PIP_LICENSES PYTHON`: the program, and the interpreter whose
packages it lists. What is allowed, and why, is in `licences.toml`.
"""

import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

_LIST: Final = Path(__file__).with_name("licences.toml")


class Package(msgspec.Struct, rename="pascal"):
    """As pip-licenses lists it."""

    name: str
    version: str
    license: str


class Allowed(msgspec.Struct):
    """The list."""

    allowed: Mapping[str, str]
    """SPDX identifier → why."""
    names: Mapping[str, str]
    """What packages write → identifier."""

    def accepts(self, licence: str) -> bool:
        """Whether a licence, or an expression of several, is allowed.

        Of alternatives (OR) one must be; of several (AND, or a list of classifiers) all.
        """
        every = re.split(r"\s+AND\s+|;\s*", licence)
        return all(
            any(self._identifier(each) in self.allowed for each in re.split(r"\s+OR\s+", part))
            for part in every
        )

    def _identifier(self, text: str) -> str:
        return self.names.get(text.strip()) or text.strip("() ")


def read_allowed(path: Path = _LIST) -> Allowed:
    """The list of allowed licences."""
    return msgspec.convert(tomllib.loads(path.read_text()), Allowed)


def table(packages: list[Package], allowed: Allowed) -> tuple[list[str], list[str]]:
    """A line for each package; and the names of those whose licence is not allowed."""
    lines, refused = [], []
    for package in packages:
        licence = package.license.strip().partition("\n")[0]  # some have the whole text in it
        accepted = allowed.accepts(licence)
        lines.append(f"{package.name:42}{package.version:14}{licence}")
        if not accepted:
            refused.append(f"{package.name} {package.version}: {licence}")
    return lines, refused


def main(program: str, python: str) -> int:
    """Prints the table; the exit status."""
    words = [program, f"--python={python}", "--format=json", "--from=mixed"]
    out = subprocess.run(words, check=True, stdout=subprocess.PIPE).stdout
    packages = msgspec.json.decode(out, type=list[Package])
    lines, refused = table(packages, read_allowed())
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    for each in refused:
        sys.stderr.write(f"not in {_LIST.name}: {each}\n")
    sys.stdout.write(f"{len(packages)} packages, {len(refused)} with a licence not allowed\n")
    return 1 if refused or not packages else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
