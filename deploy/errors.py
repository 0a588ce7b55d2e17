"""What the commands say when they cannot do what was asked."""


class CommandError(Exception):
    """A command could not do its part. `str(error)` is the one line that says why."""
