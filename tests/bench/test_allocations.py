"""The counter of heap allocations counts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bench.netns.allocations import SLOT, build, read
from dsvpn.errors import HostError

#: Threads named as the workers are; one allocates 1000 times what nothing else keeps ready, the other does not.
_CODE = """
import ctypes, threading, time
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
hold = threading.Event()
ready = threading.Barrier(3)
def work(name, count):
    libc.prctl(15, name, 0, 0, 0)
    for _ in range(count):
        libc.free(libc.malloc(100_000))
    ready.wait()
    hold.wait()
for name, count in ((b"dsvpn-encap", 1000), (b"dsvpn-decap", 0)):
    threading.Thread(target=work, args=(name, count), daemon=True).start()
ready.wait()
print("ready", flush=True)
input()
"""


def test_allocations_are_counted_by_thread(tmp_path: Path) -> None:
    library, counts = build(tmp_path), tmp_path / "counts"
    argv = ["env", f"LD_PRELOAD={library}", f"COUNT_ALLOCATIONS={counts}", sys.executable, "-c", _CODE]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        found = read(counts, process.pid)
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait(10)
    encap, decap = found["dsvpn-encap"], found["dsvpn-decap"]
    # What Python itself needs in a thread is far less.
    assert 1000 <= encap[0] < 1500
    assert encap[1] >= 100_000_000
    assert decap[0] < 500


def test_too_many_threads_are_refused(tmp_path: Path) -> None:
    slots = np.ones(256, dtype=SLOT)
    file = tmp_path / "counts"
    slots.tofile(file)
    with pytest.raises(HostError, match="more threads than records"):
        read(file, 1)
