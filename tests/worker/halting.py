"""The child of a build, which stops itself at the first word of one stage: `STAGE … JOB.json`."""

import os
import signal
import sys
from typing import Any

from core.models import Stage
from worker.building import build_process as child
from worker.building.build_process import ChildJob, Report


def main(arguments: list[str]) -> int:
    """Does the child's work as far as that."""
    at, run = arguments[0], child.run_job

    def halting(job: ChildJob, report: Report) -> Any:
        def told(stage: Stage, done: int, total: int) -> None:
            report(stage, done, total)
            if stage == at:
                os.kill(os.getpid(), signal.SIGSTOP)

        return run(job, told)

    child.run_job = halting
    return child.main(arguments[-1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
