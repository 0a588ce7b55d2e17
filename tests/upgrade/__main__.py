"""`python -m tests.upgrade`: an upgrade and a downgrade, with both releases at work in between.

Starts the emulator and Valkey, and API and worker of commit 23e14f8, from its own lock, beside
those of this checkout, on the same tables, bucket and Valkey. Writes go on all the while. Prints
what was checked; exits 1 when a check failed.
"""

import asyncio
import sys

from tests.upgrade.journeys import run
from tests.upgrade.releases import earlier, present


def main() -> int:
    """Prepares the earlier release and runs; the exit status."""
    report = asyncio.run(run(earlier(), present()))
    report.print()
    print(f"\n{len(report.rows)} checks, {report.failures} failed")
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
