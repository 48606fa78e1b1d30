"""Parts of ``jfs demo`` that need no mount: its tour on local files, and its child processes."""

import hashlib
import os
import re
import sys
from importlib.resources import files
from pathlib import Path

import pytest
import trio

from jfs.cli import children, tour
from jfs.errors import ConfigError

READY = re.compile(r"ready (\d+)")
ROOT = Path(str(files("jfs.server.samples")))


@pytest.mark.parametrize("libraries", [True, False])
async def test_the_tour_holds_on_the_samples_themselves(libraries: bool) -> None:
    digest = hashlib.sha256((ROOT / tour.DIGITS).read_bytes()).hexdigest()
    steps = tour.steps(ROOT, digest, have=lambda *modules: libraries)
    assert len(steps) == 12
    steps = [step for step in steps if not step.of_mount]  # those are tried in tests/mount
    assert len(steps) == 7
    for step in steps:
        code, output = await children.run(step.command, within_s=60)
        assert code == 0, output
        assert step.expected in output


async def test_the_tour_fails_where_there_is_nothing(tmp_path: Path) -> None:
    for step in tour.steps(tmp_path, "0" * 64):
        code, output = await children.run(step.command, within_s=60)
        assert code != 0 or step.expected not in output, step


def test_the_tour_quotes_what_it_prints(tmp_path: Path) -> None:
    root = tmp_path / "it's a $(place)"
    for step in tour.steps(root, "0" * 64):
        assert "$(place)" in step.command


@pytest.mark.parametrize("libraries", [True, False])
async def test_the_tour_holds_in_a_strange_place(tmp_path: Path, libraries: bool) -> None:
    root = tmp_path / 'it\'s a $(place) \\ "here"'
    root.symlink_to(ROOT)
    digest = hashlib.sha256((ROOT / tour.DIGITS).read_bytes()).hexdigest()
    for step in tour.steps(root, digest, have=lambda *modules: libraries):
        if step.of_mount:
            continue
        code, output = await children.run(step.command, within_s=60)
        assert code == 0, output
        assert step.expected in output


def python(program: str) -> list[str]:
    return [sys.executable, "-c", program]


async def start(program: str, *, within_s: float = 60) -> None:
    async with (
        trio.open_nursery() as nursery,
        children.running(
            "the child", python(program), nursery, ready=READY, ready_within_s=within_s, grace_s=0
        ),
    ):
        raise AssertionError("it was never ready")


async def test_a_child_is_ready_when_it_says_so_and_ends_with_the_block() -> None:
    program = "print('noise'); print('ready 42', flush=True); import time; time.sleep(999)"
    async with (
        trio.open_nursery() as nursery,
        children.running(
            "the child", python(program), nursery, ready=READY, ready_within_s=60, grace_s=60
        ) as (child, match),
    ):
        assert match[1] == "42"
        assert child.process.returncode is None
        assert os.getpgid(child.process.pid) == child.process.pid
    assert child.process.returncode == -15


async def test_a_child_that_ignores_sigterm_is_killed() -> None:
    program = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "print('ready 1', flush=True); time.sleep(999)"
    )
    async with (
        trio.open_nursery() as nursery,
        children.running(
            "the child", python(program), nursery, ready=READY, ready_within_s=60, grace_s=0.01
        ) as (child, _),
    ):
        pass
    assert child.process.returncode == -9


async def test_more_output_than_a_pipe_holds_does_not_stop_a_child() -> None:
    program = (
        "import sys; print('ready 1', flush=True);"
        "[print('x' * 1000, file=f) for f in (sys.stdout, sys.stderr) for _ in range(500)]"
    )
    async with (
        trio.open_nursery() as nursery,
        children.running(
            "the child", python(program), nursery, ready=READY, ready_within_s=60, grace_s=0
        ) as (child, _),
    ):
        with trio.fail_after(60):
            assert await child.wait() == 0


async def test_a_child_that_dies_at_its_start_has_its_last_words_repeated() -> None:
    with pytest.raises(BaseExceptionGroup) as caught:
        await start("import sys; print('out of luck', file=sys.stderr); sys.exit(3)")
    assert caught.group_contains(
        children.ChildEnded, match=r"the child ended with exit code 3\n  out of luck"
    )


async def test_a_child_that_refuses_its_options_is_a_mistake_of_ours() -> None:
    with pytest.raises(BaseExceptionGroup) as caught:
        await start("import sys; print('jfs: port in use', file=sys.stderr); sys.exit(2)")
    assert caught.group_contains(ConfigError, match="^the child: port in use$")


async def test_a_child_killed_by_a_signal_is_named() -> None:
    with pytest.raises(BaseExceptionGroup) as caught:
        await start("import os; os.kill(os.getpid(), 9)")
    assert caught.group_contains(children.ChildEnded, match="the child was killed by SIGKILL")


async def test_a_child_that_is_never_ready_is_ended() -> None:
    with pytest.raises(BaseExceptionGroup) as caught:
        await start("import time; time.sleep(999)", within_s=0.01)
    assert caught.group_contains(children.ChildEnded, match="not ready within")


async def test_a_command_that_does_not_end_is_ended() -> None:
    code, _ = await children.run("sleep 999 | sleep 999", within_s=0.01)
    assert code is None
