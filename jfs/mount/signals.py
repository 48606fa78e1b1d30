"""How signals end a mount."""

import logging
import signal
from collections.abc import Awaitable, Callable

import trio

log = logging.getLogger(__name__)

ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


async def end_on_signal(end: Callable[[float], Awaitable[None]], drain_s: float) -> None:
    """End at the first signal, after uploads that are under way; at a second one, at once."""
    with trio.open_signal_receiver(*ENDING) as signals:
        async with trio.open_nursery() as nursery:
            async for number in signals:
                log.info("ending: %s", signal.Signals(number).name)
                nursery.start_soon(end, drain_s)
                drain_s = 0.0
