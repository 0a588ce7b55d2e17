"""The data directory of `k9 dev`: its paths, its lock, its secrets, and `stack.json`."""

import base64
import os
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from core.files import file_lock, write_atomically
from core.settings import Settings
from deploy.errors import CommandError
from deploy.local.processes import identity

DEFAULT_DIR = Path(".k9")
OPERATOR = "operator"
"""The user of the embedded pool as which `k9 dev` and the commands call the API."""
_LOGS_KEPT = 3


class Secrets(msgspec.Struct, frozen=True):
    """Generated once, and stored, so that cursors and users survive a restart.

    A secret that the file of an earlier release lacks is generated when the file is read.
    """

    cursor_key: str = ""
    """32 random bytes in base64."""
    password: str = ""
    """Of every user of the embedded pool: whoever can read this file can be any of them anyway."""
    access_key_id: str = ""
    """The only key that the embedded AWS accepts."""
    secret_access_key: str = ""
    valkey_password: str = ""


class RunningStack(msgspec.Struct, frozen=True):
    """`stack.json`: how the commands reach the stack that runs here."""

    pid: int
    """Of the supervisor; 0 where there is none, in the containers of Compose."""
    identity: str
    """Distinguishes that process from a later one with the same pid."""
    environ: dict[str, str]
    """Settings and credentials, as environment variables."""
    pool_id: str
    client_id: str
    password: str

    @property
    def alive(self) -> bool:
        """Whether its supervisor is running; a container of the stack need not ask."""
        return self.pid == 0 or identity(self.pid) == self.identity

    async def fetch_token(self, settings: Settings, user: str, *, operator: bool) -> str:
        """An access token of a user of the embedded pool; see `cognito.fetch_token`."""
        from deploy.aws import cognito  # noqa: PLC0415 - it imports aioboto3

        return await cognito.fetch_token(
            settings,
            pool_id=self.pool_id,
            client_id=self.client_id,
            user=user,
            password=self.password,
            operator=operator,
        )


_SECRETS: Final = msgspec.json.Decoder(Secrets)
_STACK: Final = msgspec.json.Decoder(RunningStack)


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
        """Creates what is missing, accessible to its owner alone.

        Raises:
            CommandError: the directory cannot be created or written, or is another user's.
        """
        make_private(self.root)
        try:
            paths = (self.logs, self.pids, self.state, self.objects)
            for path in (*paths, self.valkey, self.cache, self.work, self.temporary):
                path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CommandError(f"{self.root} cannot be used: {error.strerror}") from error

    def secrets(self) -> Secrets:
        """The secrets stored here, generated at first use."""
        path = self.root / "secrets.json"
        try:
            stored = _SECRETS.decode(path.read_bytes())
        except FileNotFoundError:
            stored = Secrets()
        except (OSError, msgspec.MsgspecError) as error:
            raise CommandError(f"{path} cannot be read; delete it to get new ones") from error
        made = Secrets(
            cursor_key=stored.cursor_key or base64.b64encode(secrets.token_bytes(32)).decode(),
            # Cognito's default policy requires all four kinds of characters.
            password=stored.password or f"Aa1!{secrets.token_urlsafe(24)}",
            access_key_id=stored.access_key_id or f"K9{secrets.token_hex(9).upper()}",
            secret_access_key=stored.secret_access_key or secrets.token_urlsafe(30),
            valkey_password=stored.valkey_password or secrets.token_urlsafe(24),
        )
        if made != stored:
            write_atomically(path, msgspec.json.encode(made))
        return made

    def log(self, process: str) -> Path:
        """A new log file of a process; the last three are kept as `.1`, `.2`, `.3`."""
        path = self.logs / f"{process}.log"
        for number in range(_LOGS_KEPT, 0, -1):
            older = path if number == 1 else path.with_suffix(f".log.{number - 1}")
            with suppress(FileNotFoundError):
                older.replace(path.with_suffix(f".log.{number}"))
        return path

    @property
    def tables_saved_at(self) -> datetime | None:
        """When the emulator last wrote its tables; None if it never did."""
        try:
            saved_s = (self.state / "dynamodb.json").stat().st_mtime
        except FileNotFoundError:
            return None
        return datetime.fromtimestamp(saved_s, UTC)


def make_private(directory: Path) -> None:
    """Creates a data directory, or makes an existing one accessible to its owner alone.

    A directory with other files is not changed: other users may have to read those.

    Raises:
        CommandError: it cannot be used; with what to do.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        # By handle, so that the directory checked is the one changed, whatever its name means now.
        handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            found = os.fstat(handle)
            if found.st_uid != os.getuid():
                raise CommandError(f"{directory} is another user's: name one of your own by --data")
            if not found.st_mode & 0o077:
                return
            names = os.listdir(handle)  # noqa: PTH208 - of that handle
            if names and "secrets.json" not in names and "lock" not in names:
                raise CommandError(
                    f"{directory} holds other files, and other users may enter it: "
                    "name a new directory by --data"
                )
            os.fchmod(handle, 0o700)
        finally:
            os.close(handle)
    except OSError as error:
        raise CommandError(f"{directory} cannot be used: {error.strerror}") from error


def read_stack(directory: Path) -> RunningStack | None:
    """The stack that runs in a data directory; None if none does.

    Raises:
        CommandError: its file cannot be read, or is another user's, who could make the commands
            send data elsewhere.
    """
    path = directory / "stack.json"
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_uid != os.getuid():
                raise CommandError(f"{path} is another user's: set K9_STACK=off to ignore it")
            stack = _STACK.decode(file.read())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise CommandError(f"{path} cannot be read; start `k9 dev` again: {error}") from error
    return stack if stack.alive else None


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Holds the lock of a directory: one `k9 dev` at a time.

    Raises:
        CommandError: another process holds it.
    """
    make_private(directory)
    path = directory / "lock"
    with ExitStack() as stack:
        try:
            stack.enter_context(file_lock(path))
        except BlockingIOError:
            holder = path.read_text(encoding="ascii").strip() or "unknown"
            raise CommandError(
                f"k9 dev is already running on {directory} (process {holder}): stop it there first"
            ) from None
        path.write_text(f"{os.getpid()}\n", encoding="ascii")
        yield
