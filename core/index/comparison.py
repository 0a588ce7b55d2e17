"""The files of two versions of one model version, compared by checksum."""

from collections.abc import Mapping
from typing import Final

import msgspec

from core.index.files import COLUMNS, IDS, REPORT, VECTORS
from core.index.manifest import FileInfo, Manifest

_ABSENT: Final = "absent"
"""The digest of a file that the version does not have."""


class FileComparison(msgspec.Struct, frozen=True):
    """One file in both versions."""

    name: str
    before: str
    """SHA-256 in hex, or `absent`."""
    after: str

    @property
    def same(self) -> bool:
        """Whether its bytes are the same."""
        return self.before == self.after


class Comparison(msgspec.Struct, frozen=True):
    """Which files differ, and why."""

    files: tuple[FileComparison, ...]
    """All of both versions, by name."""
    reason: str
    """For people; empty when no file differs, or there is no explanation."""

    @property
    def differing(self) -> list[str]:
        """The names of the files that differ."""
        return [file.name for file in self.files if not file.same]


def compare(before: Manifest, after: Manifest) -> Comparison:
    """Compares the files of two versions."""
    files = tuple(
        FileComparison(name, digest(before.files, name), digest(after.files, name))
        for name in sorted(set(before.files) | set(after.files))
    )
    differing = {file.name for file in files if not file.same}
    return Comparison(files, _reason(before, after, differing) if differing else "")


def digest(files: Mapping[str, FileInfo], name: str) -> str:
    """The SHA-256 of a file in hex, or `absent`."""
    info = files.get(name)
    return _ABSENT if info is None else info.sha256


def _reason(before: Manifest, after: Manifest, differing: set[str]) -> str:
    """Why files differ: whatever their bytes depend on that has changed; empty if nothing has."""
    reasons = []
    if differing & {IDS, VECTORS}:
        reasons.append("rows have changed since then")
    elif COLUMNS in differing and differing <= {COLUMNS, REPORT}:
        reasons.append("attributes have changed since then")
    was, now = msgspec.to_builtins(before.software), msgspec.to_builtins(after.software)
    others = [f"{name} {was[name]} → {now[name]}" for name in was if was[name] != now[name]]
    if others:
        reasons.append(f"the software differs ({', '.join(others)})")
    if before.index.family != after.index.family:
        reasons.append(f"another family was chosen ({before.index.family} → {after.index.family})")
    return "; ".join(reasons)
