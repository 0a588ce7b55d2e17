"""`python -m tests.golden.write`: a golden file more for each format that is another one now.

Those of earlier releases are never changed: what they wrote is still there, and must be read.
"""

import sys

from tests.golden.format import FILES
from tests.golden.formats import FORMATS


def main() -> None:
    """Writes them, and names each."""
    FILES.mkdir(exist_ok=True)
    for each in FORMATS:
        data, known = each.encode(each.sample), each.files()
        if each.written and (not known or known[-1].read_bytes() != data):
            path = each.next_file()
            path.write_bytes(data)
            sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()
