"""A start that stands still on a disk that hangs ends, and says which disk.

Until a mount serves, everything that it does is quick and local: options, credentials, the log. A
disk that hangs (NFS without its server) holds such a call for ever, and no signal may reach it.
"""

import contextlib
import os
import sys
import threading
from pathlib import Path

LIMIT_S = 30.0
_LOOK_S = 1.0
_EXIT_CODE = 2  # nothing is mounted

_guards: list[tuple[threading.Event, threading.Thread]] = []


def watch() -> None:
    """End this process unless ``over`` is called in time. Main thread."""
    stopped = threading.Event()
    thread = threading.Thread(target=_run, args=(stopped,), name="jfs-start", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # at the limit of processes
        return
    _guards.append((stopped, thread))


def over() -> None:
    """End what ``watch`` began: the start goes on. No thread of it is left, so it may fork."""
    while _guards:
        stopped, thread = _guards.pop()
        stopped.set()
        thread.join()


def _run(stopped: threading.Event) -> None:
    if stopped.wait(LIMIT_S):
        return
    found = ", ".join(_silent(_places(sys.argv[1:]))) or "a local disk"
    text = f"jfs: {found}: has not answered for {LIMIT_S:.0f} s: look at that disk (dmesg)\n"
    os.write(2, text.encode("utf-8", "backslashreplace"))
    os._exit(_EXIT_CODE)


def _places(arguments: list[str]) -> list[str]:
    """Return what may be paths among arguments."""
    words = [word for each in arguments for word in each.replace("=", ",").split(",")]
    return [word for word in words if word.startswith(("/", "."))]


def _silent(places: list[str]) -> list[str]:
    """Return the places that a look does not return from."""
    looks = {place: threading.Thread(target=_look, args=(place,), daemon=True) for place in places}
    for look in looks.values():
        with contextlib.suppress(RuntimeError):  # no thread can be started: others are to blame
            look.start()
    for look in looks.values():
        if look.ident is not None:
            look.join(_LOOK_S)
    return [place for place, look in looks.items() if look.is_alive()]


def _look(place: str) -> None:
    Path(place).exists()
