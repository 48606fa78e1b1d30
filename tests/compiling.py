"""Compile the native part, as strictly as the compiler can be."""

import importlib.machinery
import os
import subprocess
from pathlib import Path

from jfs import native

_FOLDER = Path(native.__file__).parent
_FLAGS = ["-O2", "-shared", "-fPIC", "-fvisibility=hidden", "-D_GNU_SOURCE"]
_STRICT = ["-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow", "-Werror"]


def build(target: Path, *flags: str) -> None:
    """Compile it from the sources of this tree; *flags* are the compiler's."""
    sources = sorted(str(path) for path in _FOLDER.glob("*.c"))
    subprocess.run(["cc", *_FLAGS, *_STRICT, *flags, "-o", str(target), *sources], check=True)


def keep_built() -> None:
    """Build it in this tree, unless that was done since its sources changed."""
    suffixes = importlib.machinery.EXTENSION_SUFFIXES
    built = [path for each in suffixes if (path := _FOLDER / f"_native{each}").exists()]
    target = built[0] if built else _FOLDER / "_native.so"
    changed = max(path.stat().st_mtime for path in _FOLDER.glob("*.[ch]"))
    if built and target.stat().st_mtime >= changed:
        return
    fresh = target.with_name(f".{target.name}.{os.getpid()}")
    build(fresh)
    fresh.replace(target)  # a process may have the old one loaded
