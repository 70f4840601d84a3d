"""Compiles dsvpn/wire with Cython's pure-Python mode; everything else is in pyproject.toml.

The same sources run interpreted. DSVPN_PURE=1 in the environment installs them so, without a C compiler; without
it, a module that does not compile fails the build. Where C types pay, a .pxd beside the source declares them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_py import build_py


class BuildPy(build_py):
    """Leaves nothing in the build folder whose source is gone: setuptools would package it again."""

    def run(self) -> None:
        """Clear up, then build as usual."""
        for built in Path(self.build_lib).rglob("*"):
            source = built.relative_to(self.build_lib).with_name(f"{built.name.partition('.')[0]}.py")
            if built.suffix in (".py", ".so") and not source.exists():
                built.unlink()
        super().run()


def extensions() -> list[Any]:
    """The extension modules to build: none if DSVPN_PURE is set to something other than empty or 0."""
    if os.environ.get("DSVPN_PURE", "") not in ("", "0"):
        return []
    import Cython.Build

    # Package files only gather names: they stay interpreted.
    sources = sorted(path for path in Path("dsvpn/wire").rglob("*.py") if path.name != "__init__.py")
    cythonize: Any = Cython.Build.cythonize
    modules: list[Any] = cythonize(
        [
            Extension(".".join(path.with_suffix("").parts), [str(path)], extra_compile_args=["-O2", "-g0"])
            for path in sources
        ],
        build_dir="build/cython",
        language_level=3,
        # Annotations are for people and mypy: taken as C types they would refuse subclasses (IntEnum for int).
        compiler_directives={"annotation_typing": False, "binding": True, "embedsignature": False},
    )
    return modules


setup(
    ext_modules=extensions(),
    cmdclass={"build_py": BuildPy},
    options={"build_ext": {"parallel": os.cpu_count() or 1}},
)
