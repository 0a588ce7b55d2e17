"""The path of Python processes that tests start."""

import os
from pathlib import Path


def path_with(directory: Path) -> str:
    """The value of PYTHONPATH that has one more directory, and what has their logs copied."""
    return os.pathsep.join(filter(None, (str(directory), os.environ.get("PYTHONPATH"))))
