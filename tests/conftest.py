"""Options of every test run."""

from __future__ import annotations

import functools
import importlib
import os
import pkgutil
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

import dsvpn.wire

# A busy machine is slow, not wrong: no deadline per example, and a failure prints how to repeat it.
settings.register_profile("dsvpn", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("dsvpn")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--wire",
        choices=("interpreted", "compiled"),
        help="refuse to run unless every codec under dsvpn/wire is loaded in this form",
    )


def codec_files() -> dict[str, Path]:
    """The file that each codec module was loaded from (packages' own files are never compiled)."""
    files: dict[str, Path] = {}
    for found in pkgutil.walk_packages(dsvpn.wire.__path__, "dsvpn.wire."):
        file = importlib.import_module(found.name).__file__
        if not found.ispkg and file is not None:
            files[found.name] = Path(file)
    return files


def form_of(file: Path) -> str:
    return "interpreted" if file.suffix == ".py" else "compiled"


def pytest_configure(config: pytest.Config) -> None:
    wanted = config.getoption("--wire")
    for name, file in codec_files().items():
        if wanted is not None and form_of(file) != wanted:
            raise pytest.UsageError(f"{name} is {form_of(file)} ({file}), but --wire={wanted} was asked for")
        source = file.with_name(f"{name.rpartition('.')[2]}.py")
        # An extension module hides the source beside it: a run on a stale one would test what nobody reads. An
        # installer writes both at once, in any order.
        built_here = form_of(file) == "compiled" and "site-packages" not in file.parts
        if built_here and source.exists() and source.stat().st_mtime > file.stat().st_mtime:
            raise pytest.UsageError(f"{file} is older than {source.name}: build it again or remove it")


def touches_the_machine(item: pytest.Item) -> bool:
    """Whether it makes namespaces, devices or anything else that needs root."""
    return any(item.get_closest_marker(name) for name in ("root", "netns"))


@functools.cache
def makes_namespaces(file: Path) -> bool:
    """Whether tests of a file are marked so; seen from outside, by a process that has not loaded them."""
    return re.search(r"\bmark\.(netns|root)\b", file.read_text()) is not None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `-n N --dist loadscope`: a file that makes namespaces stays in one process, where its tests share what they
    have set up; the benchmarks' tests are one such file, because their namespaces have fixed names. All other tests go
    wherever there is time."""
    if config.getoption("dist") != "loadscope":
        return None
    from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

    class FilesWithNamespaces(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            if not makes_namespaces(config.rootpath / file):
                return nodeid
            return "bench" if "tests/bench/" in file else file

    return FilesWithNamespaces(config, log)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if os.geteuid() != 0 and touches_the_machine(item):
        pytest.skip("needs root: run `sudo make test`")


def pytest_report_header(config: pytest.Config) -> str:
    forms = sorted({form_of(file) for file in codec_files().values()})
    return f"dsvpn.wire: {' and '.join(forms)}, from {Path(dsvpn.wire.__path__[0]).parent}"
