"""The data directory of `k9 dev`: where things lie in it, its lock, its marker, its secrets."""

import base64
import contextlib
import fcntl
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from deploy.errors import CommandError
from deploy.local.processes import identity

DEFAULT_DIR = Path(".k9")
OPERATOR = "operator"
"""The user of the embedded pool that `k9 dev` and the commands are."""
_LOGS_KEPT = 3


class Secrets(msgspec.Struct, frozen=True):
    """Made once, and kept, so that cursors and users live over a restart.

    What a file of an earlier release lacks is empty here, and made when it is read.
    """

    cursor_key: str = ""
    """32 random bytes in base64."""
    password: str = ""
    """Of every user of the embedded pool: whoever reads this file can be each of them anyway."""
    access_key_id: str = ""
    """The only key that the embedded AWS takes."""
    secret_access_key: str = ""
    valkey_password: str = ""


class RunningStack(msgspec.Struct, frozen=True):
    """`stack.json`: what the commands need to reach the stack that runs here."""

    pid: int
    """Of the supervisor."""
    identity: str
    """Tells that process from a later one of the same pid."""
    environ: dict[str, str]
    """Settings and credentials, as environment variables."""
    pool_id: str
    client_id: str
    password: str

    @property
    def alive(self) -> bool:
        """Whether its supervisor still runs."""
        return identity(self.pid) == self.identity


class DataDir:
    """Paths under the data directory, all absolute."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.logs = self.root / "logs"
        self.pids = self.root / "pids"
        self.state = self.root / "aws" / "state"
        self.objects = self.root / "aws" / "s3"
        self.valkey = self.root / "valkey"
        self.cache = self.root / "cache"
        self.work = self.root / "work"
        self.temporary = self.root / "tmp"
        self.marker = self.root / "unclean"

    def create(self) -> None:
        """Makes what is missing, for its owner alone.

        Raises:
            CommandError: when the directory cannot be made or written, or is not ours.
        """
        make_private(self.root)
        try:
            paths = (self.logs, self.pids, self.state, self.objects)
            for path in (*paths, self.valkey, self.cache, self.work, self.temporary):
                path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CommandError(f"{self.root} cannot be used: {error.strerror}") from error

    def secrets(self) -> Secrets:
        """The secrets kept here, made at first use."""
        path = self.root / "secrets.json"
        try:
            kept = msgspec.json.decode(path.read_bytes(), type=Secrets)
        except FileNotFoundError:
            kept = Secrets()
        except (OSError, msgspec.MsgspecError) as error:
            raise CommandError(f"{path} does not read; remove it to have new ones") from error
        made = Secrets(
            cursor_key=kept.cursor_key or base64.b64encode(secrets.token_bytes(32)).decode(),
            # Cognito's default policy wants all four kinds of characters.
            password=kept.password or f"Aa1!{secrets.token_urlsafe(24)}",
            access_key_id=kept.access_key_id or f"K9{secrets.token_hex(9).upper()}",
            secret_access_key=kept.secret_access_key or secrets.token_urlsafe(30),
            valkey_password=kept.valkey_password or secrets.token_urlsafe(24),
        )
        if made != kept:
            write_private(path, msgspec.json.encode(made))
        return made

    def log(self, part: str) -> Path:
        """A new log file of a part; the last three are kept as `.1`, `.2`, `.3`."""
        path = self.logs / f"{part}.log"
        for number in range(_LOGS_KEPT, 0, -1):
            older = path if number == 1 else path.with_suffix(f".log.{number - 1}")
            with contextlib.suppress(FileNotFoundError):
                older.replace(path.with_suffix(f".log.{number}"))
        return path

    @property
    def tables_saved_at(self) -> datetime | None:
        """When the emulator last wrote its tables; None when it never did."""
        try:
            saved_s = (self.state / "dynamodb.json").stat().st_mtime
        except FileNotFoundError:
            return None
        return datetime.fromtimestamp(saved_s, UTC)


def write_private(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all, readable by its owner alone."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def make_private(directory: Path) -> None:
    """Makes a data directory, or makes an existing one its owner's alone.

    One with files of other kinds is not changed: someone else may have to read those.

    Raises:
        CommandError: when it cannot be used so, with what to do.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        # What is looked at is what is changed, wherever the name leads meanwhile.
        handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            found = os.fstat(handle)
            if found.st_uid != os.getuid():
                raise CommandError(f"{directory} is another user's: name one of your own by --data")
            if not found.st_mode & 0o077:
                return
            if not _is_data(os.listdir(handle)):  # noqa: PTH208 - of that handle
                raise CommandError(
                    f"{directory} holds other files, and other users may enter it: "
                    "name a new directory by --data"
                )
            os.fchmod(handle, 0o700)
        finally:
            os.close(handle)
    except OSError as error:
        raise CommandError(f"{directory} cannot be used: {error.strerror}") from error


def _is_data(names: list[str]) -> bool:
    return not names or "secrets.json" in names or "lock" in names


def read_stack(directory: Path) -> RunningStack | None:
    """The stack that runs in a data directory; None when none does.

    Raises:
        CommandError: when its file is there and does not read, or is another user's, who could have
            the commands send data elsewhere.
    """
    path = directory / "stack.json"
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_uid != os.getuid():
                raise CommandError(f"{path} is another user's: set K9_STACK=off to do without it")
            stack = msgspec.json.decode(file.read(), type=RunningStack)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise CommandError(f"{path} does not read; start `k9 dev` again: {error}") from error
    return stack if stack.alive else None


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Holds the lock of a directory: one `k9 dev` at a time.

    The system drops it with the process, so that a crash leaves no stale lock.

    Raises:
        CommandError: when another process holds it.
    """
    make_private(directory)
    with (directory / "lock").open("a+", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise CommandError(
                f"k9 dev runs already on {directory} (process {file.read().strip() or 'unknown'}): "
                "stop it there first"
            ) from None
        file.seek(0)
        file.truncate()
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield
