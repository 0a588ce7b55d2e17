"""How long operations report to whoever started them."""

from collections.abc import Callable
from typing import Protocol

MessageCallback = Callable[[str], None]
"""Called with one line of text for people."""


class ProgressCallback(Protocol):
    """Called whenever a task has advanced."""

    def __call__(self, task: str, completed: int, total: int | None = None, /) -> None:
        """Reports the state of one task.

        Args:
            task: Its name, such as `writing users`: one progress bar.
            completed: How much of it is done so far, in a unit of its own.
            total: All there is to do; None where that is unknown.
        """


def ignore(*_: object) -> None:
    """The callback of a caller that shows nothing."""
