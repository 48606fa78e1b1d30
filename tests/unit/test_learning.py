"""What reading tells about what will be read."""

import trio

from jfs.model import RepoPath
from jfs.vfs.reading.learning import Habits, Streaming


async def test_the_kernel_is_told_when_somebody_streams(
    autojump_clock: trio.testing.MockClock,
) -> None:
    said: list[bool] = []
    streaming = Streaming()
    streaming.note(True)  # nobody listens yet
    streaming.tell(said.append)
    for streams in (False, True, True, False):
        streaming.note(streams)
    assert said == [True]  # another reader's READ is not the end of the stream
    await trio.sleep(1)
    streaming.note(False)
    streaming.note(False)
    assert said == [True, False]
    streaming.note(True)
    assert said == [True, False, True]


async def test_a_stream_is_alone_until_another_one_comes(
    autojump_clock: trio.testing.MockClock,
) -> None:
    streaming = Streaming()
    for who in ("a", "a", "a"):
        streaming.note(True, who)
    assert streaming.is_alone()
    streaming.note(False, "b")  # it looks for something
    assert streaming.is_alone()
    streaming.note(True, "b")
    assert not streaming.is_alone()
    await trio.sleep(10)
    assert streaming.is_alone()
    streaming.note(True, "a")
    assert not streaming.is_alone()


def test_a_server_is_far_if_the_fastest_of_the_last_requests_took_long() -> None:
    habits = Habits(far_s=0.01)
    for _ in range(3):
        habits.answered(0.05)
    assert not habits.is_far()  # too few to tell
    habits.answered(0.05)
    assert habits.is_far()
    habits.answered(0.001)
    assert not habits.is_far()


def test_habits_are_of_a_folder() -> None:
    habits = Habits(far_s=0.01)
    habits.note(RepoPath("r", "a/1"), True)
    assert habits.are_read_whole(RepoPath("r", "a/2"))
    assert not habits.are_read_whole(RepoPath("r", "b/2"))
    habits.note(RepoPath("r", "a/2"), False)
    assert not habits.are_read_whole(RepoPath("r", "a/3"))
    for number in range(5000):
        habits.note(RepoPath("r", f"{number}/1"), True)
    assert not habits.are_read_whole(RepoPath("r", "0/2"))  # memory is bounded
