"""The read-ahead planner on the patterns of model loaders."""

import random

from hypothesis import given
from hypothesis import strategies as st

from jfs.extents import Extent, GiB, KiB, MiB
from jfs.vfs.reading.readahead import ReadaheadPlanner

BLOCK = 32 * KiB
WINDOW = 32 * MiB


def planned(planner: ReadaheadPlanner, reads: list[Extent]) -> list[int]:
    """Bytes planned by each READ, counting every byte once."""
    seen: set[int] = set()
    amounts = []
    for read in reads:
        plan = planner.observe(read)
        blocks = {
            block
            for part in (plan.demand, plan.ahead)
            for block in range(part.start // BLOCK, -(-part.stop // BLOCK))
        }
        amounts.append(len(blocks - seen) * BLOCK)
        seen |= blocks
    return amounts


def sequential(start: int, size: int, count: int) -> list[Extent]:
    return [Extent(start + i * size, start + (i + 1) * size) for i in range(count)]


def test_a_header_of_a_huge_file_fetches_little() -> None:
    planner = ReadaheadPlanner(10 * GiB, BLOCK, WINDOW)
    # 8 bytes of length, then the header: the kernel asks in pieces that grow to 1 MiB.
    amounts = planned(planner, [Extent(0, 16 * KiB), Extent(16 * KiB, 144 * KiB)])
    assert sum(amounts) <= 1 * MiB


def test_a_sequential_reader_is_at_full_speed_within_a_few_requests() -> None:
    planner = ReadaheadPlanner(10 * GiB, BLOCK, WINDOW)
    reads = sequential(0, 1 * MiB, 8)
    furthest = 0
    for read in reads:
        plan = planner.observe(read)
        furthest = max(furthest, plan.ahead.stop)
    assert furthest - reads[-1].stop >= WINDOW // 2


def test_small_sequential_reads_reach_the_window_too() -> None:
    planner = ReadaheadPlanner(10 * GiB, BLOCK, WINDOW)
    reads = sequential(0, 128 * KiB, 160)
    furthest = max(planner.observe(read).ahead.stop for read in reads)
    assert furthest - reads[-1].stop >= WINDOW // 2


def test_random_reads_fetch_what_they_ask() -> None:
    choose = random.Random(7)
    planner = ReadaheadPlanner(10 * GiB, BLOCK, WINDOW)
    offsets = [choose.randrange(0, 10 * GiB // 4096) * 4096 for _ in range(2000)]
    amounts = planned(planner, [Extent(o, o + 4 * KiB).clipped(10 * GiB) for o in offsets])
    assert max(amounts) <= 2 * BLOCK
    assert sum(amounts) <= len(offsets) * BLOCK * 1.01


def test_random_reads_of_a_mebibyte_stay_below_a_third_more() -> None:
    choose = random.Random(8)
    planner = ReadaheadPlanner(10 * GiB, BLOCK, WINDOW)
    offsets = [choose.randrange(0, (10 * GiB - MiB) // 4096) * 4096 for _ in range(500)]
    amounts = planned(planner, [Extent(o, o + MiB) for o in offsets])
    assert sum(amounts) <= 1.3 * len(offsets) * MiB


def test_an_unaligned_mebibyte_in_two_requests_is_no_sequence() -> None:
    choose = random.Random(9)
    planner = ReadaheadPlanner(10 * GiB, BLOCK, WINDOW)
    offsets = [choose.randrange(0, (10 * GiB - 2 * MiB) // 4096) * 4096 for _ in range(500)]
    pieces = [
        part for o in offsets for part in (Extent(o, o + MiB), Extent(o + MiB, o + MiB + 4096))
    ]
    assert sum(planned(planner, pieces)) <= 1.3 * len(offsets) * MiB


def test_the_first_fault_of_a_mapping_reads_no_more_than_it_asks() -> None:
    planner = ReadaheadPlanner(10 * GiB, BLOCK, WINDOW)
    assert sum(planned(planner, [Extent(0, MiB), Extent(MiB, 2 * MiB)])) == 2 * MiB


def test_strided_reads_fetch_what_they_ask() -> None:
    planner = ReadaheadPlanner(10 * GiB, BLOCK, WINDOW)
    reads = [Extent(i * 64 * MiB, i * 64 * MiB + 128 * KiB) for i in range(100)]
    assert sum(planned(planner, reads)) == 100 * 128 * KiB


def test_two_readers_of_one_file_both_run_ahead() -> None:
    planner = ReadaheadPlanner(4 * GiB, BLOCK, WINDOW)
    ahead = {0: 0, 2 * GiB: 0}
    for i in range(8):
        for start in ahead:
            plan = planner.observe(Extent(start + i * MiB, start + (i + 1) * MiB))
            ahead[start] = max(ahead[start], plan.ahead.stop - start)
    assert min(ahead.values()) >= 8 * MiB + WINDOW // 4


reads = st.lists(
    st.tuples(st.integers(0, 4 * MiB - 1), st.integers(1, MiB)).map(
        lambda pair: Extent(pair[0], min(pair[0] + pair[1], 4 * MiB))
    ),
    max_size=60,
)


@given(reads, st.integers(1, 4 * MiB))
def test_every_plan_covers_its_read_and_stays_in_the_file(reads: list[Extent], size: int) -> None:
    planner = ReadaheadPlanner(size, BLOCK, MiB)
    for read in reads:
        read = read.clipped(size)
        if not read:
            continue
        plan = planner.observe(read)
        assert plan.demand.contains(read)
        assert plan.demand.stop <= size
        assert plan.ahead.stop <= size
        assert plan.ahead.start >= plan.demand.start
        assert plan.ahead.start % BLOCK == 0 or not plan.ahead
        assert plan.ahead.size <= MiB + 2 * BLOCK


def test_what_could_not_be_fetched_is_planned_again() -> None:
    planner = ReadaheadPlanner(1024 * MiB, 64 * KiB, 32 * MiB)
    place, plan = 0, None
    while plan is None or not plan.ahead:
        plan = planner.observe(Extent(place, place + MiB))
        place += MiB
    reached = plan.ahead.start + 64 * KiB
    planner.retract(plan.ahead, reached)
    while not (again := planner.observe(Extent(place, place + MiB))).ahead:
        place += MiB
    assert again.ahead.start <= max(reached, again.demand.stop)
