"""Keep freed memory in the process, on huge pages."""

import ctypes
import mmap
import sys
from functools import cache

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
KEPT = (1 << 31) - 1  # the largest threshold of trimming there is
BLOCK = 256 << 20


@cache
def keep_freed_memory() -> bool:
    """Tell glibc not to return big blocks to the system at every free; True where that works.

    By default every activation of a CPU training step is mapped, page-faulted in and unmapped
    again. The first 1.75 GiB of the heap then ask for huge pages. Results do not change.
    """
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None)
    if (mallopt := getattr(libc, "mallopt", None)) is None:  # another C library, musl for one
        return False
    # Older versions refuse a threshold of this size; then no block is mapped at all.
    kept = mallopt(M_MMAP_THRESHOLD, 1 << 30) or mallopt(M_MMAP_MAX, 0)
    if not (kept and mallopt(M_TRIM_THRESHOLD, KEPT)):
        return False
    # Grow the heap by blocks, mark their pages and free them; untouched, they take no memory.
    libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
    libc.free.argtypes, libc.free.restype = [ctypes.c_void_p], None
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    addresses = [address for _ in range(KEPT // BLOCK) if (address := libc.malloc(BLOCK))]
    for address in addresses:
        page = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
        libc.madvise(page, BLOCK - mmap.PAGESIZE, mmap.MADV_HUGEPAGE)  # a kernel may know none
    for address in reversed(addresses):
        libc.free(address)
    return True
