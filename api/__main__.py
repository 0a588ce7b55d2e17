"""`python -m api`: what is set before anything is imported, then the API."""

import gc
import os
import sys

# One thread a search: OpenMP's and OpenBLAS's pools read this once, when they are loaded.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# What is imported stays, and to look for garbage in it takes 0.15 s: `freeze_memory` ends this.
gc.disable()

from api.process import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
