"""Keeping freed memory for the next step instead of returning it to the system."""

import ctypes
import platform

# <malloc.h>
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
M_MMAP_MAX = -4
LARGEST_KEPT = 1 << 30


def keep_freed_memory() -> bool:
    """Let glibc reuse freed blocks of up to 1 GiB; returns whether that was possible.

    By default glibc maps every block above 32 MiB afresh and unmaps it when freed. An activation
    of WRN-28-2 on 352 images has 46 MB, so each step took some 200,000 page faults, a tenth of its
    time. No result changes; the process keeps its peak memory until it ends.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # Older versions cap the threshold; there mapping is switched off instead.
    kept = mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT) or mallopt(M_MMAP_MAX, 0)
    return bool(kept and mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
