"""Keep freed memory in the process."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4


def keep_freed_memory() -> bool:
    """Tell glibc not to return big blocks to the system at every free; True where that works.

    By default every activation of a CPU training step is mapped, page-faulted in and unmapped
    again, some hundred thousand faults a step for a Wide ResNet. Results do not change.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library, musl for one
        return False
    # Older versions refuse a threshold of this size; then no block is mapped at all.
    kept = mallopt(M_MMAP_THRESHOLD, 1 << 30) or mallopt(M_MMAP_MAX, 0)
    return bool(kept and mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1))
