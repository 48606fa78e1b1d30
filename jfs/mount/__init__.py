"""One mount from its start to its end: the checks before, the kernel's mount, signals, the end.

=============== ==================================================================================
``serving``     composition root: check, build, mount, serve, end
``starting``    how it begins: asks, waits, or begins with what is known; ``offline``
``session``     the kernel's mount, through pyfuse3
``reports``     what the mount says of itself: ``.jfs/``
``faults``      who made a READ, and why: read-ahead that nobody waits for is refused
``requests``    how pyfuse3 waits for requests
``withdrawals`` lets go whoever was told to end, in any state of the server
``atonce``      answers READs of what is in memory, without a task
``beside``      has the native part answer them, without the interpreter
``waiters``     whether a thread was told to end; which call it waits in
``watchdog``    ends a mount that does not answer
``survivor``    cuts the connection of a daemon that was killed, by a child
``looks``       looks whether a mount answers, by a child
``stacks``      where every thread and task is
``signals``     how signals end a mount
``supervisor``  what systemd is told
``fallocate``   a handler of FALLOCATE for pyfuse3, which has none
``copying``     one of COPY_FILE_RANGE
``passthrough`` has the kernel read files of the cache itself
``libfuse``     how some of these change what pyfuse3 and libfuse call
``mountpoint``  checks before a mount; taking a mount away
``table``       what is mounted where: ``/proc/self/mountinfo``
=============== ==================================================================================

Imports go downwards in this order. ``table`` and ``mountpoint`` load neither pyfuse3 nor the
filesystem: every command may use them.
"""
