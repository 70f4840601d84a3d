"""What tshark makes of a capture of ESP with the tables that our key log writes."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path


def echoes_seen_by_tshark(capture: Path, keys: Path) -> tuple[list[list[str]], str]:
    """ICMP type, GRE key and whether the ICV is good, packet by packet; and what tshark complains of. `keys` is the
    key log's directory."""
    options = "-o esp.enable_encryption_decode:TRUE -o esp.enable_authentication_check:TRUE"
    fields = "-T fields -e icmp.type -e gre.key -e esp.icv_good"
    done = subprocess.run(
        ["tshark", *options.split(), "-r", str(capture), *fields.split()],
        env={**os.environ, "WIRESHARK_CONFIG_DIR": str(keys)},
        capture_output=True,
        text=True,
        check=True,
    )
    return [line.split("\t") for line in done.stdout.splitlines()], done.stderr
