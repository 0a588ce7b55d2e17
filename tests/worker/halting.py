"""A build process that stops itself as soon as a stage begins: `STAGE … SPEC.json`."""

import os
import signal
import sys
from unittest.mock import patch

from core.models import Progress, ProgressCallback
from worker.building import build_process
from worker.building.protocol import BuildOutput, BuildSpec
from worker.building.stages import build_version


def main(arguments: list[str]) -> int:
    """Does the process's work as far as that."""

    def halting(spec: BuildSpec, report: ProgressCallback) -> BuildOutput:
        def halt(progress: Progress) -> None:
            report(progress)
            if progress.stage == arguments[0]:
                os.kill(os.getpid(), signal.SIGSTOP)

        return build_version(spec, halt)

    with patch.object(build_process, "build_version", halting):
        return build_process.main(arguments[-1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
