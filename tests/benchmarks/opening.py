"""What a process takes of memory of its own to open a version, whose files are mapped.

    python -m tests.benchmarks.opening DIRECTORY

Prints bytes. The directory is one of a cache: `tests.benchmarks.processes` runs this.
"""

import argparse
import gc
from pathlib import Path
from typing import Final

from api.serving.segment import Segment
from core.index.manifest import MANIFEST, decode_manifest
from core.index.version import MappedVersion

_SEARCHES: Final = 500
_K: Final = 10
_KIB: Final = 1024


def anonymous() -> int:
    """Bytes of memory of this process that are of no file."""
    gc.collect()
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(_KIB * int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))


def measure(directory: Path) -> int:
    """Bytes that opening takes, after some searches."""
    manifest = decode_manifest((directory / MANIFEST).read_bytes())
    before = anonymous()
    segment = Segment(MappedVersion.open(directory, manifest), 1)
    for row in range(0, segment.rows, max(1, segment.rows // _SEARCHES)):
        segment.search([segment.vector(row)], _K)
    return anonymous() - before


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("directory", type=Path)
    print(measure(parser.parse_args().directory))
