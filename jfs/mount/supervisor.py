"""Whoever started us, and what they are told: systemd's protocol (sd_notify(3)). Any thread."""

import logging
import os
import socket
from collections.abc import Mapping

log = logging.getLogger(__name__)


def tell(*lines: str) -> None:
    """Send ``READY=1``, ``STATUS=…`` and the like; nobody listens: nothing. Does not block."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.setblocking(False)
            notify.connect(address.replace("@", "\0", 1))
            notify.sendall("\n".join(lines).encode("utf-8", "replace"))
    except OSError as error:
        log.warning("NOTIFY_SOCKET %s: %s", address, error.strerror)


def supervises(environ: Mapping[str, str]) -> bool:
    """Whether a supervisor started this very process, who will see to it that it ends.

    systemd marks all that a service starts, the shells of a desktop and the jobs of a build agent
    included; since version 248 it says which process is the service itself.
    """
    if environ.get("NOTIFY_SOCKET"):
        return True
    if not environ.get("INVOCATION_ID"):
        return False
    told = environ.get("SYSTEMD_EXEC_PID")
    return told == str(os.getpid()) if told is not None else os.getppid() == 1


def watchdog_s(environ: Mapping[str, str] = os.environ) -> float | None:
    """Return how long it waits for ``WATCHDOG=1``, in seconds; None: it waits for none of ours."""
    try:
        period_s = int(environ["WATCHDOG_USEC"]) / 1e6
        process = int(environ.get("WATCHDOG_PID", os.getpid()))
    except (KeyError, ValueError):
        return None
    return period_s if period_s > 0 and process == os.getpid() else None
