"""The entry point: whatever happens is one line on standard error and an exit code.

Loads the commands only inside ``main``: a Ctrl-C while modules are loaded is one line too.
"""

import contextlib
import os
import signal
import sys


def main() -> None:
    """Run the command line, and exit."""
    try:
        code = _run()
    except KeyboardInterrupt:
        _interrupted()
    except BaseExceptionGroup as group:
        if group.split(KeyboardInterrupt)[0] is None:
            raise
        _interrupted()
    sys.exit(code)


def _run() -> int:
    from jfs import descriptors, logs
    from jfs.cli import output
    from jfs.cli.group import run
    from jfs.errors import JfsError

    descriptors.raise_limit()
    logs.no_gaps()
    output.open_all()
    try:
        code = run(sys.argv[1:])
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # `jfs ls | head`: whoever reads has seen enough
        output.give_up()
        return 1
    except (JfsError, OSError) as error:
        output.complain(str(error))
        output.give_up()
        return getattr(error, "exit_code", 1)


def _interrupted() -> None:
    """Leave at once: threads that wait for a network would keep the interpreter for as long."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        os.write(2, b"jfs: interrupted\n")
    os._exit(128 + signal.SIGINT)
