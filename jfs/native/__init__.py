"""The native part: what moves bytes and needs no interpreter, in C. jfs runs without it, too.

One shared object, built with the package where there is a C compiler, and called through ctypes:
a call releases the interpreter's lock, and the object knows nothing of Python, so that it is the
same for every version. Python decides; C moves bytes.

``library`` returns it, or None: it was not built, it is of another version, or ``turn_off`` was
called. Whoever asks does the same work in Python then.

In a tree that is not installed it is built in place, by the package's own build or at once by::

    cc -O2 -shared -fPIC -fvisibility=hidden -D_GNU_SOURCE -Wall -Wextra -Werror \
        -o jfs/native/_native.so jfs/native/*.c

Any thread.
"""

import ctypes
import importlib.machinery
import logging
import threading
from pathlib import Path

log = logging.getLogger(__name__)

# JFS_NATIVE_ABI of native.h. An object of another number was left by another version.
ABI = 6
_NAME = "_native"

_lock = threading.Lock()
_found: "ctypes.CDLL | None" = None
_is_looked_for = False
_is_off = False


def library() -> ctypes.CDLL | None:
    """Return the native part, None: there is none to be used. Callers declare what they call."""
    global _found, _is_looked_for
    if _is_off:
        return None
    if not _is_looked_for:
        with _lock:
            if not _is_looked_for:
                _found = load(Path(__file__).parent)
                _is_looked_for = True
    return _found


def turn_off(off: bool = True) -> None:
    """Have ``library`` return None from now on, or no longer."""
    global _is_off
    _is_off = off


def load(folder: Path) -> ctypes.CDLL | None:
    """Load the native part that lies in *folder*. None: there is none that fits, as is logged."""
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        path = folder / f"{_NAME}{suffix}"
        if not path.exists():
            continue
        try:
            loaded = ctypes.CDLL(str(path))
            abi = int(loaded.jfs_native_abi())
        except (OSError, AttributeError) as error:
            log.info("%s: cannot be used, so reading takes more CPU time: %s", path, error)
            return None
        if abi != ABI:
            log.info("%s: is of another version, so reading takes more CPU time: build it", path)
            return None
        return loaded
    log.info("jfs was installed without a C compiler: reading takes more CPU time")
    return None
