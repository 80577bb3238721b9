"""One thread per process: `make test` runs two, and threads that wait for a core cost both time."""

import os

# Before torch is imported, and for the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
