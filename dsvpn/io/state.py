"""What a gateway keeps over restarts: files in its state directory, for its owner alone."""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

from dsvpn.errors import HostError

#: Octets of the secret of crash tokens (RFC 6290 section 5.1).
_SECRET_LENGTH: Final = 32
_TOKEN_SECRET: Final = "crash-token-secret"


def token_secret(directory: Path) -> bytes:
    """The secret that crash tokens are made with: the one of the last run, or a fresh one, which is kept.

    One that others could read is replaced: with it they could end this gateway's IKE SAs. HostError when it cannot be
    kept.
    """
    path = directory / _TOKEN_SECRET
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        kept = _read(path)
        return _write(path) if kept is None else kept
    except OSError as error:
        raise HostError(f"gateway.state_directory: cannot use {error.filename or path}: {error.strerror}") from None


def _read(path: Path) -> bytes | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        private = status.st_uid == os.geteuid() and not stat.S_IMODE(status.st_mode) & 0o077
        secret = file.read(_SECRET_LENGTH + 1)
    return secret if private and len(secret) == _SECRET_LENGTH else None


def _write(path: Path) -> bytes:
    secret = secrets.token_bytes(_SECRET_LENGTH)
    # A name of its own, then a rename: whoever looks finds a whole secret or none.
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secret)
            file.flush()
            os.fsync(descriptor)
        fresh.rename(path)
    except OSError:
        with suppress(OSError):
            fresh.unlink()
        raise
    return secret
