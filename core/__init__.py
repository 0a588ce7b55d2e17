"""What the API, the worker and the commands share. Imports none of them, and no web framework."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("k9")
except PackageNotFoundError:  # run from a checkout that was never installed
    __version__ = "0+unknown"
