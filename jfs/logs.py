"""Set up logging once per process. Modules log through ``logging.getLogger(__name__)``."""

import logging
import sys


def set_up(level: int = logging.INFO, *, file: str | None = None) -> None:
    """Send records of every logger to *file*, or to standard error.

    Call once, before threads start. Libraries below WARNING are silenced: httpx logs whole URLs,
    and a signed location is a secret.
    """
    handler: logging.Handler
    handler = (
        logging.FileHandler(file, encoding="utf-8") if file else logging.StreamHandler(sys.stderr)
    )
    handler.setFormatter(
        logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S%z")
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("jfs").setLevel(level)
