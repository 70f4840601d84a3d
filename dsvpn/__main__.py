"""`python -m dsvpn`."""

from __future__ import annotations

import sys

from dsvpn.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
