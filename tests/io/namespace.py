"""A network namespace of the test's own, which goes when the test leaves it."""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

_CLONE_NEWNET = 0x40000000
_TUNSETIFF = 0x400454CA
_IFF_TUN = 0x0001
_IFF_NO_PI = 0x1000
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def require_root() -> None:
    """Skip, with the reason, what needs root."""
    if os.geteuid() != 0:
        pytest.skip("needs root: it makes a network namespace")


@contextmanager
def new_namespace() -> Iterator[None]:
    """Put the calling thread, and the processes that it starts, in a fresh network namespace."""
    require_root()
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(_libc.unshare(_CLONE_NEWNET), "unshare")
        try:
            ip("link set lo up")
            yield
        finally:
            _check(_libc.setns(home, _CLONE_NEWNET), "setns")
    finally:
        os.close(home)


def ip(command: str) -> str:
    """Run `ip COMMAND` here and give what it prints."""
    done = subprocess.run(["ip", *command.split()], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {command}: {done.stderr}"
    return done.stdout


@contextmanager
def tun(name: str) -> Iterator[int]:
    """A TUN device with a carrier (somebody holds it open). Gives its descriptor."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
        yield descriptor
    finally:
        os.close(descriptor)
