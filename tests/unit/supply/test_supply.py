"""Licences, the audit and the release: what passes, what is refused, and what changes."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest

from tests.supply.audit import verdict
from tests.supply.licences import Package, read_allowed, table
from tests.supply.release import Refused, section_of

ROOT = Path(__file__).parents[3]
GIT = shutil.which("git") or pytest.skip("git is needed", allow_module_level=True)
IDENTITY = {
    f"GIT_{who}_{what}": value
    for who in ("AUTHOR", "COMMITTER")
    for what, value in (("NAME", "Release Test"), ("EMAIL", "release@k9.test"))
}


@pytest.mark.parametrize(
    ("licence", "accepted"),
    [
        ("MIT", True),
        ("MIT License", True),
        ("Apache-2.0 AND MIT", True),
        ("GPL-3.0-only OR MIT", True),
        ("Apache Software License; MIT License", True),
        ("MIT License\n\nCopyright: the whole text", True),
        ("GPL-3.0-only", False),
        ("MIT AND GPL-3.0-only", False),
        ("GNU General Public License v3 (GPLv3); MIT License", False),
        ("UNKNOWN", False),
        ("", False),
    ],
)
def test_a_licence_is_allowed_or_named(licence: str, *, accepted: bool) -> None:
    """Of alternatives one must be in the list, of several all; each entry has its reason."""
    allowed = read_allowed()
    assert all(allowed.allowed.values())
    lines, refused = table([Package("p", "1", licence)], allowed)
    assert len(lines) == 1
    assert bool(refused) is not accepted


def test_an_audit_fails_for_what_is_known_and_skips_what_it_cannot_reach() -> None:
    """And fails for any other reason: a skip must not hide a mistake."""

    def said(*dependencies: Mapping[str, object]) -> tuple[int, str]:
        return verdict(msgspec.json.encode({"dependencies": dependencies, "fixes": []}), "")

    good = {"name": "a", "version": "1", "vulns": []}
    bad = {"name": "b", "version": "2", "vulns": [{"id": "CVE-1", "fix_versions": ["3"]}]}
    unknown = {"name": "c", "skip_reason": "Dependency not found on PyPI"}
    assert said(good)[0] == 0
    status, text = said(good, bad, unknown)
    assert status == 1
    assert "b 2: CVE-1, fixed in 3" in text
    assert "not audited: c" in text
    status, text = said(unknown, unknown)
    assert (status, text.count("\n")) == (0, 0)
    assert text.startswith("skipped: ")
    status, text = verdict(b"", "ERROR: Connection refused\n")
    assert (status, text.count("\n")) == (0, 0)
    assert text.startswith("skipped: ")
    with pytest.raises(ValueError, match="no such file"):
        verdict(b"", "ERROR: no such file: requirements/none.txt")


@pytest.mark.parametrize(
    ("changelog", "problem"),
    [
        ("# C\n\n## 1.2.3 - 2026-11-28\n\n- new\n\n## 1.2.2\n\n- old\n", None),
        ("# C\n\n## Unreleased\n\n## 1.2.3\n\n- new\n", None),
        ("# C\n\n## Unreleased\n\n- more\n\n## 1.2.3\n\n- new\n", "under Unreleased"),
        ("# C\n\n## 1.2.4\n\n- newer\n\n## 1.2.3\n\n- new\n", "1.2.4"),
        ("# C\n\n## 1.2.3\n", "empty"),
        ("# C\n", "no version"),
    ],
)
def test_the_newest_section_is_that_of_the_version(changelog: str, problem: str | None) -> None:
    """With something in it, and nothing unreleased above."""
    if problem is None:
        assert section_of(changelog, "1.2.3") == "- new"
    else:
        with pytest.raises(Refused, match=problem):
            section_of(changelog, "1.2.3")


class Clone:
    """A clone of a repository that has what a release reads; its `make check` is a stand-in."""

    def __init__(self, directory: Path) -> None:
        self.origin, self.path = directory / "origin", directory / "clone"
        self.origin.mkdir()
        (self.origin / "tests").mkdir()
        (self.origin / "tests" / "__init__.py").touch()
        shutil.copytree(ROOT / "tests" / "supply", self.origin / "tests" / "supply")
        self.write("pyproject.toml", '[project]\nname = "k9"\nversion = "1.2.3"\n', self.origin)
        self.write("CHANGELOG.md", "# C\n\n## 1.2.3\n\n- new\n  # kept\n", self.origin)
        self.write("Makefile", "check:\n\t@test ! -e ../red\n", self.origin)
        self.write(".gitignore", "__pycache__/\n", self.origin)
        self.git("init", "--quiet", "--initial-branch=main", where=self.origin)
        self.git("add", "--all", where=self.origin)
        self.git("commit", "--quiet", "--message", "all", where=self.origin)
        self.git("config", "receive.denyCurrentBranch", "ignore", where=self.origin)
        self.git("clone", "--quiet", str(self.origin), str(self.path), where=directory)

    def write(self, name: str, text: str, where: Path | None = None) -> None:
        """Writes a file."""
        ((where or self.path) / name).write_text(text)

    def git(self, *words: str, where: Path | None = None) -> str:
        """What git prints."""
        environ = os.environ | IDENTITY | {"GIT_CONFIG_GLOBAL": os.devnull}
        run = subprocess.run(
            [GIT, *words], cwd=where or self.path, env=environ, check=True, capture_output=True
        )
        return run.stdout.decode().strip()

    def commit(self, name: str, text: str) -> None:
        """Commits a change of a file."""
        self.write(name, text)
        self.git("commit", "--quiet", "--all", "--message", f"change {name}")

    def release(self, *version: str) -> tuple[int, str]:
        """Status and output of a release."""
        run = subprocess.run(
            [sys.executable, "-m", "tests.supply.release", *version],
            cwd=self.path,
            env=os.environ | IDENTITY | {"PYTHONPATH": "", "GIT_CONFIG_GLOBAL": os.devnull},
            check=False,
            capture_output=True,
        )
        return run.returncode, (run.stdout + run.stderr).decode()

    def state(self) -> str:
        """Commit, tags and changes."""
        return "\n".join(
            self.git(*words) for words in (["rev-parse", "HEAD"], ["tag"], ["status", "--short"])
        )


def test_a_release_is_a_tag_with_the_changelog_and_can_be_pushed(tmp_path: Path) -> None:
    """And a second one of the same version is refused."""
    clone = Clone(tmp_path)
    status, text = clone.release("1.2.3")
    assert status == 0, text
    assert clone.git("cat-file", "-t", "v1.2.3") == "tag"
    assert clone.git("for-each-ref", "--format=%(contents)", "refs/tags") == (
        "K9 1.2.3\n\n- new\n  # kept"
    )
    clone.git("push", *text.strip().rpartition("git push ")[2].split())
    assert clone.git("tag", where=clone.origin) == "v1.2.3"
    before = clone.state()
    status, text = clone.release("1.2.3")
    assert (status, clone.state()) == (1, before)
    assert "there is a tag v1.2.3 already" in text


def test_what_is_not_in_order_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    """A version that is none or another, a tree with changes, a check that fails."""
    clone = Clone(tmp_path)

    def refused(problem: str, *version: str) -> None:
        before = clone.state()
        status, text = clone.release(*(version or ("1.2.3",)))
        assert status == 1
        assert problem in text
        assert len(text.strip().splitlines()[-1:]) == 1
        assert clone.state() == before

    refused("name one", "")
    refused("name one", "1.2")
    refused("name one", "v1.2.3")
    refused("name one", "1.2.3; true")
    refused("pyproject.toml has version 1.2.3, not 1.2.4", "1.2.4")
    (tmp_path / "red").touch()
    refused("make check is not green")
    (tmp_path / "red").unlink()
    clone.write("left.txt", "left")
    refused("not clean: ?? left.txt")
    (clone.path / "left.txt").unlink()
    clone.commit("CHANGELOG.md", "# C\n\n## Unreleased\n\n- more\n\n## 1.2.3\n\n- new\n")
    refused("under Unreleased")
    clone.commit("CHANGELOG.md", "# C\n\n## 1.2.2\n\n- old\n")
    refused("1.2.2, not 1.2.3")
