"""A version that was made again, held against the one that it replaces."""

from typing import Final, Literal

import msgspec

from core.index.files import IDS, INDEX, NEIGHBORS, NPZ, PARQUET, REPORT, SCORES, VECTORS
from core.index.manifest import Manifest

ABSENT: Final = "absent"
"""In place of a digest, where the version does not have the file."""


class File(msgspec.Struct, frozen=True):
    """One file, as it was and as it is."""

    name: str
    before: str
    """SHA-256 in hex, or `absent`."""
    after: str

    @property
    def same(self) -> bool:
        """Whether it is the same bytes."""
        return self.before == self.after


class Comparison(msgspec.Struct, frozen=True):
    """What is the same, and why what is not is not."""

    files: tuple[File, ...]
    """All of both versions, by name."""
    verdict: Literal["same", "explained", "unexplained"]
    reason: str
    """In words: why files differ; empty where none does."""

    @property
    def differing(self) -> list[str]:
        """The names of the files that differ."""
        return [file.name for file in self.files if not file.same]


def compare(before: Manifest, after: Manifest) -> Comparison:
    """Holds the files of two versions of one model version against each other."""
    names = sorted(set(before.files) | set(after.files))
    files = tuple(File(name, digest(before, name), digest(after, name)) for name in names)
    differing = {file.name for file in files if not file.same}
    if not differing:
        return Comparison(files, "same", "")
    reason = _reason(before, after, differing)
    return Comparison(files, "explained" if reason else "unexplained", reason)


def comparable(before: Manifest, after: Manifest) -> tuple[str, ...]:
    """The files that are the same bytes for the same rows.

    A graph that several threads made is another one each time, and so is what it was measured at,
    and a matrix that was made by it.
    """
    names = set(before.files) | set(after.files)
    if not before.parameters.deterministic and before.index.family != "exact":
        names -= {INDEX, REPORT}
        if not before.matrix.exact:
            names -= {NEIGHBORS, SCORES, PARQUET, NPZ}
    return tuple(sorted(names))


def digest(manifest: Manifest, name: str) -> str:
    """The SHA-256 of a file in hex, or `absent`."""
    info = manifest.files.get(name)
    return ABSENT if info is None else info.sha256


def _reason(before: Manifest, after: Manifest, differing: set[str]) -> str:
    """Why files differ: what their bytes depend on and is not what it was; empty if nothing is."""
    reasons = []
    if differing & {IDS, VECTORS}:
        reasons.append("rows have changed since then")
    was, now = msgspec.to_builtins(before.software), msgspec.to_builtins(after.software)
    others = [f"{name} {was[name]} → {now[name]}" for name in was if was[name] != now[name]]
    if others:
        reasons.append(f"other software made it ({', '.join(others)})")
    if before.index.family != after.index.family:
        reasons.append(f"another index was chosen ({before.index.family} → {after.index.family})")
    if differing.isdisjoint(comparable(before, after)):
        reasons.append("a graph is another one each time unless its build is deterministic")
    return "; ".join(reasons)
