"""What the commands say when they cannot do what was asked."""


class CommandError(Exception):
    """A command could not do its part. `str(error)` is the one line that says why."""

    def __init__(self, line: str, exit_status: int = 1) -> None:
        super().__init__(line)
        self.exit_status = exit_status
