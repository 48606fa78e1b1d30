"""Run ``jfs mount`` as a user would: a process of its own, ended and checked."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO

JFS = [sys.executable, "-m", "jfs"]
_DEADLINE_S = 30
_WEDGED_S = 10


class Mounted:
    """A running mount. ``log()`` is what it wrote to standard error so far.

    Args:
        under: a command that becomes the mount, such as ``prlimit``.
    """

    def __init__(
        self,
        source: str,
        root: Path,
        *,
        environ: Mapping[str, str],
        cache: Path,
        options: Iterable[str] = (),
        under: Iterable[str] = (),
    ) -> None:
        self.root = root
        self._log = root.with_name(f"{root.name}.log").open("w+")
        self.process = subprocess.Popen(
            [*under, *JFS, "mount", source, str(root), "--cache-dir", str(cache), *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**clean_environ(), **environ},
            text=True,
            errors="surrogateescape",  # it names its mountpoint, which may hold any byte
        )
        try:
            self.line = _pipe(self.process).readline()
        except BaseException:  # the time-out of a test: nobody else knows of it
            self.kill()
            raise
        if not self.line:
            self.process.wait(_DEADLINE_S)
            raise AssertionError(f"the mount did not start: {self.log()}")

    def log(self) -> str:
        self._log.flush()
        return Path(self._log.name).read_text()

    def rss(self) -> int:
        """Bytes of memory of the daemon."""
        return self._of_memory("VmRSS")

    def peak(self) -> int:
        """The most that ``rss`` ever was."""
        return self._of_memory("VmHWM")

    def _of_memory(self, what: str) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(rf"{what}:\s+(\d+) kB", status)
        assert found
        return int(found[1]) * 1024

    def stop(self, *, expected: Iterable[str] = ()) -> None:
        """End it with SIGTERM; it must end cleanly, and log nothing that is not *expected*."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(_DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        finally:
            self.close()
        assert code == 0, self.log_after()
        assert not os.path.ismount(self.root)
        surprises = [
            line
            for line in self.log_after().splitlines()
            if not re.search(r" (INFO|DEBUG) ", line)
            and not any(re.search(pattern, line) for pattern in expected)
        ]
        assert not surprises, surprises

    def log_after(self) -> str:
        return Path(self._log.name).read_text()

    def close(self) -> None:
        """Close what the test process holds of it."""
        _pipe(self.process).close()
        self._log.close()

    def kill(self) -> None:
        """End it without a word, and clear the mountpoint."""
        self.process.kill()
        self.buried()
        self.close()
        self.clear()

    def clear(self) -> None:
        """Take away what a daemon that was killed has left at the mountpoint."""
        subprocess.run(["fusermount3", "-uzq", str(self.root)], check=False)

    def buried(self) -> bool:
        """Wait until it has gone after SIGKILL; return whether its connection had to be cut.

        Its own survivor does that after a second, where there is one: see ``jfs.mount.survivor``.
        """
        try:
            self.process.wait(_WEDGED_S)
        except subprocess.TimeoutExpired:
            subprocess.run(["umount", "-f", str(self.root)], capture_output=True, check=False)
            self.process.wait(_DEADLINE_S)
            return True
        return False


def clean_environ() -> dict[str, str]:
    """The environment without anything that would configure jfs."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("JF_", "JFROG_", "ARTIFACTORY_", "XDG_", "NOTIFY_", "SSL_CERT_"))
        and name not in ("NETRC", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
    }


def is_zombie(pid: int) -> bool:
    """Whether a process has ended but for threads that wait in the kernel, deaf to signals."""
    return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()


def run_jfs(
    *arguments: str, under: Sequence[str] = (), **environ: str
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; *under* is a command that becomes another one."""
    return subprocess.run(
        [*under, *JFS, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=_DEADLINE_S,
        stdin=subprocess.DEVNULL,
        env={**clean_environ(), **environ},
    )


def _pipe(process: subprocess.Popen[str]) -> IO[str]:
    assert process.stdout is not None
    return process.stdout
