"""One thread per process: `make test` runs two, and threads that wait for a core cost both time.

Hypothesis judges examples by what they show, not by how long a busy machine takes to draw them: on
a fresh clone its first text costs more than a second.
"""

import os

from hypothesis import HealthCheck, settings

# Before torch is imported, and for the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("house", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("house")
