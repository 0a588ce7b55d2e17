"""Why an attempt at a build or an import ended, as callers read it in the row."""

from core.errors import K9Error, public_detail


def reason_of(error: Exception) -> str:
    """The reason without names of tables and buckets, paths, or texts of libraries."""
    if isinstance(error, K9Error):
        return public_detail(error)
    if isinstance(error, OSError) and error.strerror:
        return f"the worker's operating system reported: {error.strerror}"
    return f"unexpected {type(error).__name__}; see the worker's log"
