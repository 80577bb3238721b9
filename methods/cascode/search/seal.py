"""Tells what this user wrote on this machine from what came with somebody's folder.

A seal is a digest under a key that lies outside of all indexed folders and that only this user can
read. What it seals can be read by anyone, but nobody else can make it.
"""

import errno
import hashlib
import os
import secrets
from contextlib import suppress
from functools import cache
from pathlib import Path

from shared.files import open_regular

SIZE = 32  # bytes of the key


def digest(*parts: bytes) -> str:
    """32 hex digits; no other key and no other cut of the same bytes gives them."""
    state = hashlib.blake2b(digest_size=16, key=_key(_place())[0])
    for part in parts:
        state.update(len(part).to_bytes(8, "big") + part)
    return state.hexdigest()


def problem() -> str:
    """Why no key can be kept, so that seals end with this process; "" where one is."""
    return _key(_place())[1]


def _place() -> Path:
    state = os.environ.get("XDG_STATE_HOME", "")
    base = state if os.path.isabs(state) else os.path.expanduser("~/.local/state")
    return Path(base, "tenfold", "key")


@cache
def _key(path: Path) -> tuple[bytes, str]:
    """The key, and why it cannot be kept."""
    try:
        if not path.is_absolute():
            raise OSError(errno.ENOENT, "this user has no home")
        if not os.path.lexists(path):
            _create(path)
        return _read(path), ""
    except OSError as error:
        return secrets.token_bytes(SIZE), f"{path}: {error.strerror}"


def _read(path: Path) -> bytes:
    with open_regular(path, follow_links=False) as file:
        found = os.fstat(file.fileno())
        content = file.read(SIZE + 1)
    if len(content) != SIZE or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise OSError(errno.EPERM, "no key that this user alone can read; remove it")
    return content


def _create(path: Path) -> None:
    path.parent.mkdir(0o700, parents=True, exist_ok=True)
    with suppress(FileExistsError), open(path, "xb", opener=_private) as file:
        file.write(secrets.token_bytes(SIZE))
        file.flush()
        os.fsync(file.fileno())


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)
