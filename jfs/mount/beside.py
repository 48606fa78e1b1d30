"""READs are answered beside the interpreter (``jfs.native.replies``): what pyfuse3 needs for it.

pyfuse3 waits until the kernel has a request, and has libfuse read it. Here a thread of the native
part reads all of them; pyfuse3 waits for what that leaves, and takes it from there. libfuse is as
ever: it gets a request in memory, and writes its answer to the kernel itself.

Where anything is not as it is known to be, pyfuse3 reads for itself.

It could go away if pyfuse3 had a function for requests that were read by others, and a READ could
be answered without its event loop.
"""

import ctypes
import logging

import trio

from jfs import native
from jfs.mount.libfuse import entry, library, put
from jfs.native.replies import Replies

log = logging.getLogger(__name__)


class Beside:
    """Those of one mount. In the thread that calls pyfuse3.

    Attributes:
        replies: None: pyfuse3 reads for itself.
    """

    def __init__(self) -> None:
        self.replies: Replies | None = None
        self._is_started = False
        self._slot: ctypes.c_void_p | None = None
        self._before: int | None = None
        loaded = native.library()
        if loaded is None:
            return
        try:
            self._slot = entry(library(), b"fuse_session_receive_buf")
            leave = ctypes.cast(library().fuse_session_exit, ctypes.c_void_p).value
            self.replies = Replies(loaded, leave or 0)
        except (OSError, AttributeError, LookupError, ValueError) as error:
            log.debug("READs are answered by pyfuse3 alone: %s", error)
            self.replies = None

    def requests(self, device: int) -> int:
        """Return the descriptor that is readable when pyfuse3 has a request.

        Args:
            device: the kernel's connection.
        """
        if self.replies is None:
            return device
        if not self._is_started:
            assert self._slot is not None
            try:
                # Not before: another pyfuse3 may not wait here, and has to read for itself.
                before = self._slot.value
                put(self._slot, self.replies.receive)
                self._before = before
                self.replies.start(device)
            except (OSError, LookupError) as error:
                log.debug("READs are answered by pyfuse3 alone: %s", error)
                self.close()
                return device
            self._is_started = True
        return self.replies.ready

    async def hear(self) -> None:
        """Have READs noted that were answered, until cancelled."""
        while self.replies is not None:
            await trio.lowlevel.wait_readable(self.replies.noted)
            self.replies.hear()

    def end(self) -> None:
        """Leave every READ to pyfuse3."""
        if self.replies is not None:
            self.replies.end()

    def close(self) -> None:
        """Touch the connection no more."""
        if self.replies is None:
            return
        self.replies.stop()
        self.replies = None
        if self._slot is not None and self._before is not None:
            put(self._slot, self._before)
