"""The entry point: whatever happens is one line on standard error and an exit code.

Loads the commands only inside ``main``: a Ctrl-C while modules are loaded is one line too.
"""

import sys

from jfs.interrupts import leave


def main() -> None:
    """Run the command line, and exit."""
    try:
        code = _run()
    except KeyboardInterrupt:
        leave()
    except BaseExceptionGroup as group:
        if group.split(KeyboardInterrupt)[0] is None:
            raise
        leave()
    sys.exit(code)


def _run() -> int:
    from jfs import descriptors, logs
    from jfs.cli import output, standstill
    from jfs.cli.group import is_mount, run
    from jfs.errors import AccessDenied, JfsError

    descriptors.raise_limit()
    logs.no_gaps()
    output.open_all()
    try:
        if is_mount(sys.argv[1:]):
            standstill.watch()
        code = run(sys.argv[1:])
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # `jfs ls | head`: whoever reads has seen enough
        output.give_up()
        return 1
    except (JfsError, OSError) as error:
        told = str(error)
        if isinstance(error, AccessDenied) and error.status == 401:
            told += ": give a token with --token-file or JF_ACCESS_TOKEN"
        output.complain(told)
        output.give_up()
        return getattr(error, "exit_code", 1)
    finally:
        standstill.over()
