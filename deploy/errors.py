"""The errors of commands."""


class CommandError(Exception):
    """A command failed. `str(error)` is the one line that says why."""

    def __init__(self, line: str, exit_status: int = 1) -> None:
        super().__init__(line)
        self.exit_status = exit_status
