"""Run a suite of others in a process group of its own, and read its verdicts.

A process that waits for a mount that hangs cannot be joined: whatever touches the mount runs here,
with a deadline, and its whole group is killed after it.
"""

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from tests.mount.mounting import clean_environ

_END_S = 5.0
PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"


@dataclass(frozen=True)
class Ran:
    """How a command ended, and what it wrote: both streams as one."""

    code: int
    output: str


@dataclass(frozen=True)
class Verdict:
    """Of one test: ``PASSED``, ``FAILED`` or ``SKIPPED``, and its words."""

    outcome: str
    text: str = ""


def run(
    command: Sequence[str | Path],
    cwd: Path,
    *,
    deadline_s: float,
    log: Path,
    environ: Mapping[str, str] | None = None,
) -> Ran:
    """Run to the end, or to the deadline, which is a failure.

    Args:
        log: where the output goes; a pipe could stay open in a process that was left behind.
    """
    with log.open("w") as output:
        process = subprocess.Popen(
            # Popen itself would change directory between vfork and exec, with the interpreter's
            # lock held: the server that a look-up on the way asks may live in this process.
            ["env", "-C", str(cwd), *(str(word) for word in command)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**clean_environ(), "LC_ALL": "C.UTF-8", **(environ or {})},
            start_new_session=True,
        )
        try:
            code = process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_END_S)  # one that waits inside a dead mount stays
            raise AssertionError(
                f"{command[0]}: not done after {deadline_s} s: {_tail(log)}"
            ) from None
    return Ran(code, log.read_text(errors="replace"))


def check(
    command: Sequence[str | Path],
    cwd: Path,
    *,
    deadline_s: float,
    log: Path,
    environ: Mapping[str, str] | None = None,
) -> str:
    """As ``run``, of what must succeed. Returns what it wrote."""
    ran = run(command, cwd, deadline_s=deadline_s, log=log, environ=environ)
    assert ran.code == 0, f"{' '.join(map(str, command))}: {ran.code}: {_tail(log)}"
    return ran.output


def verdicts(report: Path) -> dict[str, Verdict]:
    """Read the JUnit report of pytest or of CPython's regrtest: the verdict of every test."""
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        name = case.get("name", "")
        if case.get("classname"):
            name = f"{case.get('classname', '').lstrip('.')}.{name}"
        verdict = Verdict(PASSED)
        for child in case:
            if child.tag in ("failure", "error"):
                verdict = Verdict(FAILED, child.text or child.get("message", ""))
            elif child.tag == "skipped":
                verdict = Verdict(SKIPPED, child.text or child.get("message", ""))
        found[name] = verdict
    return found


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-4000:]
