"""`make fuzz-ike`, with libFuzzer's arguments: the first folder gets the recorded conversations as seeds and what is
found."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["dsvpn"]):
    from tests.ike.fuzzing import one_input, record


def main() -> None:
    """Fuzz, or run the files that are named instead of a folder."""
    found = Path(next(argument for argument in sys.argv[1:] if not argument.startswith("-")))
    if not found.is_file():
        found.mkdir(parents=True, exist_ok=True)
        for _, octets in record():
            (found / hashlib.sha1(octets, usedforsecurity=False).hexdigest()).write_bytes(octets)
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
