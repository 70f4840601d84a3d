"""Faults of the kernel, on demand: `faults.c` between a data plane process and the kernel, steered from the test."""

from __future__ import annotations

import mmap
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

_SOURCE = Path(__file__).with_name("faults.c")
_FIELDS = (
    "gso_errno",
    "gso_left",
    "send_errno",
    "send_left",
    "tun_kinds",
    "tun_refused",
    "offloads",
    "mangle_tail",
    "lie",
    "swap",
    "one_queue",
    "no_steering",
    "recording",
    "records",
)
_RECORDS = 1 << 20
_RECORD = np.dtype([("spi", np.uint32), ("sequence", np.uint32), ("hash", np.uint64)])
#: Where the records begin: aligned as the compiler does it.
_HEAD = (len(_FIELDS) * 4 + 7) // 8 * 8
_SIZE = _HEAD + _RECORDS * _RECORD.itemsize

#: As often as it is asked for.
ALWAYS = 0xFFFFFFFF

#: Values of `lie`: which call says that it gave more than there was room for.
LIE_TUN_READ, LIE_RECEIVE = 1, 2


def build(directory: Path) -> Path:
    """Compile the library into a directory. The C compiler is the one that linking Rust needs anyway."""
    library = directory / "faults.so"
    command = ["cc", "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o", str(library), str(_SOURCE)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return library


class Faults:
    """The faults of one process. Fields are those of `struct faults` in faults.c; all are 0 at first.

    Give `environment` to the process, and close this when it has ended.
    """

    def __init__(self, library: Path, file: Path) -> None:
        file.write_bytes(bytes(_SIZE))
        with file.open("r+b") as opened:
            self._map = mmap.mmap(opened.fileno(), _SIZE)
        self.environment: Mapping[str, str] = {"LD_PRELOAD": str(library), "DSVPN_FAULTS": str(file)}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._map.close()

    def set(self, **fields: int) -> None:
        """Change fields, in the order given: what says how often comes last."""
        for name, value in fields.items():
            at = 4 * _FIELDS.index(name)
            self._map[at : at + 4] = value.to_bytes(4, "little")

    def get(self, name: str) -> int:
        at = 4 * _FIELDS.index(name)
        return int.from_bytes(self._map[at : at + 4], "little")

    def recorded(self) -> npt.NDArray[np.void]:
        """Every datagram that was handed to the kernel while `recording` was 1, whatever became of it: an array of
        shape (n,) with fields `spi`, `sequence` and `hash` (of all its octets)."""
        count = self.get("records")
        assert count <= _RECORDS, "more datagrams than there is room for records"
        octets = self._map[_HEAD : _HEAD + count * _RECORD.itemsize]
        return np.frombuffer(octets, _RECORD)
