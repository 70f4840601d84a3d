"""Fixtures of the descriptor tests: namespaces and faults of the kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.native.faults import Faults, build
from tests.native.network import Pair, pair


@pytest.fixture
def network() -> Iterator[Pair]:
    with pair() as made:
        yield made


@pytest.fixture(scope="session")
def faults_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("faults"))


@pytest.fixture
def make_faults(faults_library: Path, tmp_path: Path) -> Iterator[Callable[[], Faults]]:
    """Makes the faults of one process after another."""
    with ExitStack() as undo:
        numbers = iter(range(100))
        yield lambda: undo.enter_context(Faults(faults_library, tmp_path / f"faults{next(numbers)}"))


@pytest.fixture
def faults(make_faults: Callable[[], Faults]) -> Faults:
    """The faults of one process."""
    return make_faults()
