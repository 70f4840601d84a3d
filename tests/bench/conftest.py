"""A namespace for what sends packets."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dsvpn.lab.run import Run
from dsvpn.lab.topology import Namespace


@pytest.fixture
def namespace() -> Iterator[str]:
    """A network namespace with a loopback."""
    run = Run("dsvpn-bench-test")
    run.open()
    try:
        box = Namespace(run, "box")
        box.create()
        yield box.name
    finally:
        run.close()
