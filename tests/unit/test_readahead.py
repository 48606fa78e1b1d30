"""The read-ahead planner on the patterns of model loaders."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jfs.extents import Extent, GiB, KiB, MiB
from jfs.formats import Layout, Part
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


def furthest_ahead(planner: ReadaheadPlanner, reads: list[Extent]) -> int:
    return max(planner.observe(read).ahead.stop for read in reads) - reads[-1].stop


def test_where_files_are_read_whole_the_window_opens_within_a_few_requests() -> None:
    planner = ReadaheadPlanner(10 * GiB, BLOCK, WINDOW, whole=True)
    assert furthest_ahead(planner, sequential(0, MiB, 8)) >= WINDOW * 3 // 8


def test_small_sequential_reads_reach_the_window_too() -> None:
    planner = ReadaheadPlanner(10 * GiB, BLOCK, WINDOW, whole=True)
    assert furthest_ahead(planner, sequential(0, 128 * KiB, 160)) >= WINDOW // 2


def test_a_stream_opens_the_window() -> None:
    planner = ReadaheadPlanner(10 * GiB, BLOCK, WINDOW)
    assert furthest_ahead(planner, sequential(3 * GiB, MiB, 140)) >= WINDOW * 3 // 4


@pytest.mark.parametrize("far", [False, True])
@pytest.mark.parametrize("alone", [False, True])
def test_a_stream_that_is_alone_makes_larger_requests(alone: bool, far: bool) -> None:
    """And not one byte more; of a far server several are under way at a time."""
    size = 8 * MiB
    planner = ReadaheadPlanner(
        10 * GiB, BLOCK, 4 * size, piece=size, is_far=lambda: far, doubled=lambda: alone
    )
    reads = sequential(0, MiB, 512)
    plans = [planner.observe(read) for read in reads]
    ahead = [plan.ahead for plan in plans[256:] if plan.ahead]
    expected = 2 * size if alone and not far else size
    assert planner.piece == expected
    assert {extent.size for extent in ahead} == {expected}
    assert all(extent.start % expected == 0 for extent in ahead)
    assert max(plan.ahead.stop for plan in plans) <= reads[-1].stop + 4 * size
    planner.observe(Extent(5 * GiB, 5 * GiB + MiB))
    assert planner.piece == size


def test_a_far_server_is_asked_for_more_ahead() -> None:
    planner = ReadaheadPlanner(10 * GiB, BLOCK, WINDOW, is_far=lambda: True)
    assert furthest_ahead(planner, sequential(3 * GiB, MiB, 16)) >= 2 * MiB


@given(st.integers(0, 200), st.sampled_from([128 * KiB, 512 * KiB, MiB]), st.booleans())
def test_a_run_that_ends_early_costs_a_quarter_of_itself(count: int, size: int, far: bool) -> None:
    planner = ReadaheadPlanner(10 * GiB, BLOCK, WINDOW, is_far=lambda: far)
    asked = count * size
    planned_bytes = sum(planned(planner, sequential(GiB, size, count)))
    most = asked + asked // 4 if far or asked > 64 * MiB else asked + asked // 16
    assert planned_bytes <= most + BLOCK


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
    for i in range(64):
        for start in ahead:
            plan = planner.observe(Extent(start + i * MiB, start + (i + 1) * MiB))
            ahead[start] = max(ahead[start], plan.ahead.stop - start)
    assert min(ahead.values()) >= 64 * MiB + 3 * MiB


def test_runs_of_one_length_tell_the_next_one() -> None:
    planner = ReadaheadPlanner(10 * GiB, BLOCK, WINDOW)
    for start in (GiB, 2 * GiB):
        planned(planner, sequential(start, MiB, 8))
    first, *later = planned(planner, sequential(3 * GiB, MiB, 8))
    assert first == 8 * MiB  # with its first READ
    assert sum(later) == 0


def test_a_run_that_is_longer_than_those_before_it_goes_on() -> None:
    planner = ReadaheadPlanner(10 * GiB, BLOCK, WINDOW)
    for start in (GiB, 2 * GiB):
        planned(planner, sequential(start, MiB, 8))
    assert furthest_ahead(planner, sequential(3 * GiB, MiB, 140)) >= WINDOW * 3 // 4


def test_runs_of_other_lengths_tell_nothing() -> None:
    planner = ReadaheadPlanner(10 * GiB, BLOCK, WINDOW)
    for start, count in ((GiB, 8), (2 * GiB, 3)):
        planned(planner, sequential(start, MiB, count))
    assert planned(planner, sequential(3 * GiB, MiB, 8))[0] == MiB


TENSORS = Layout.of(
    MiB,
    10 * GiB,
    [Part(f"layers.{n}", Extent(MiB + n * 40 * MiB, MiB + (n + 1) * 40 * MiB)) for n in range(50)],
)


def tensor_reads(number: int, first: int, last: int, *, around: bool = True) -> list[Extent]:
    """READs of a part of a tensor, in quarters; the fault that begins it reads around itself."""
    start, stop = TENSORS.parts[number].extent
    quarter = (stop - start) // 4
    reads = sequential(start + first * quarter, MiB, (last - first) * quarter // MiB)
    return [Extent(reads[0].start - MiB, reads[0].start), *reads] if around else reads


@pytest.mark.parametrize(("first", "last"), [(0, 1), (1, 2), (3, 4), (0, 4)])
def test_the_same_share_of_every_tensor_is_recognised(first: int, last: int) -> None:
    planner = ReadaheadPlanner(10 * GiB, BLOCK, WINDOW)
    planner.layout = TENSORS
    for number in (3, 7):
        planned(planner, tensor_reads(number, first, last))
    around, second, *later = planned(planner, tensor_reads(20, first, last))
    whole = (last - first) * 10 * MiB
    assert around + second > min(whole, WINDOW) - 4 * MiB  # requests end at their multiples
    assert around + second + sum(later) <= MiB + whole


ODD = Layout.of(  # a tensor does not begin where a page does
    MiB,
    10 * GiB,
    [
        Part(f"{n}", Extent(MiB + n * 40 * MiB + 808, MiB + (n + 1) * 40 * MiB + 808))
        for n in range(9)
    ],
)


def odd_reads(number: int, share: int = 1) -> list[Extent]:
    """READs of whole pages of a tensor, or of its first part of so many."""
    start, stop = ODD.parts[number].extent
    stop = start + (stop - start) // share
    return [*sequential(start - 808, MiB, 40 // share), Extent(stop - 808, stop - 808 + 4 * KiB)]


@pytest.mark.parametrize("share", [1, 4])
def test_the_page_that_two_tensors_share_is_of_the_one_that_is_read(share: int) -> None:
    planner = ReadaheadPlanner(10 * GiB, BLOCK, WINDOW)
    planner.layout = ODD
    for number in (3, 6):
        assert sum(planned(planner, odd_reads(number, share))) <= 40 * MiB // share + MiB * 5 // 4
    first, *later = planned(planner, odd_reads(1, share))
    assert first > min(40 * MiB // share, WINDOW) - 4 * MiB
    assert first + sum(later) <= 40 * MiB // share + 2 * BLOCK


def test_behind_the_end_of_a_tensor_nothing_is_wanted_that_the_kernel_reads_ahead() -> None:
    planner = ReadaheadPlanner(10 * GiB, BLOCK, WINDOW)
    planner.layout = ODD
    for number in (3, 6):
        planned(planner, odd_reads(number))
    *reads, last = odd_reads(1)
    for read in reads:
        assert not planner.is_spare(read)
        planner.observe(read)
    for start in (last.start, last.start + MiB, last.start + 2 * MiB):
        assert planner.is_to_be_looked_at(Extent(start, start + MiB))
        assert planner.is_spare(Extent(start, start + MiB))
    planner.observe(last)
    assert planner.is_spare(Extent(last.start + MiB, last.start + 2 * MiB))
    assert not planner.is_spare(Extent(last.stop, last.stop + MiB))  # its reader goes on


def test_what_nobody_is_known_to_want_starts_nothing() -> None:
    """The kernel has read on behind the end of a call, which has its bytes."""
    planner = ReadaheadPlanner(10 * GiB, BLOCK, WINDOW)
    reads, end = sequential(GiB, MiB, 16), GiB + 16 * MiB
    planner.observe(reads[0], end)
    for read in reads[1:]:
        planner.observe(read)
    beyond = Extent(end, end + MiB)
    assert planner.is_spare(beyond)
    assert not planner.observe(beyond, is_spare=True).ahead
    for read in sequential(beyond.stop, MiB, 8):  # somebody did
        last = planner.observe(read)
    assert last.ahead


def test_one_run_is_not_two_of_one_length() -> None:
    planner = ReadaheadPlanner(10 * GiB, BLOCK, WINDOW)
    planner.layout = TENSORS
    planned(planner, tensor_reads(3, 0, 1, around=False))
    end = TENSORS.parts[3].extent.start + 10 * MiB
    elsewhere = Extent(5 * GiB, 5 * GiB + MiB)
    assert planner.is_spare(elsewhere)  # looked at: the run may have ended
    planner.observe(Extent(end, end + 4 * KiB))
    assert planner.is_spare(elsewhere)
    assert planner.observe(elsewhere).ahead.size == 0


@pytest.mark.parametrize("late", [1, 2])
def test_a_read_that_others_overtake_begins_no_run(late: int) -> None:
    """Those of what is under way are answered beside the interpreter."""
    planner = ReadaheadPlanner(10 * GiB, BLOCK, WINDOW)
    planner.layout = ODD
    for number in (3, 6):
        planned(planner, odd_reads(number))
    for number in (1, 5, 8):
        reads = odd_reads(number)
        reads.insert(2 + late, reads.pop(2))
        first, *later = planned(planner, reads)
        assert first > WINDOW - 4 * MiB
        assert first + sum(later) <= 40 * MiB + 2 * BLOCK


def test_the_page_where_two_tensors_meet_tells_nothing_of_either() -> None:
    planner = ReadaheadPlanner(10 * GiB, BLOCK, WINDOW)
    planner.layout = ODD
    for number in (3, 6):
        planned(planner, odd_reads(number))
    planner.observe(odd_reads(0)[-1])
    first = odd_reads(8)[0]
    assert not planner.is_spare(first)
    assert planner.observe(first).ahead.stop > first.stop + 16 * MiB


def test_a_fault_that_begins_a_large_tensor_is_answered_whole() -> None:
    """Page by page it would take hundreds of READs until it is known to go on."""
    planner = ReadaheadPlanner(10 * GiB, BLOCK, WINDOW)
    planner.layout = ODD
    start = odd_reads(5)[0].start
    around, first = Extent(start - MiB, start), Extent(start, start + MiB)
    within = Extent(start + 20 * MiB, start + 21 * MiB)
    assert planner.is_spare(Extent(0, MiB)) is False  # nobody has read anything yet
    planner.observe(Extent(0, MiB))
    assert [planner.is_spare(each) for each in (around, first, within)] == [True, False, True]
    # The page that it begins in is there already: it was of the tensor before.
    assert not planner.is_spare(Extent(start + 4 * KiB, start + MiB))


@pytest.mark.parametrize(("first", "last"), [(0, 1), (1, 2)])
def test_a_fault_is_answered_whole_where_the_same_was_read_of_other_tensors(
    first: int, last: int
) -> None:
    planner = ReadaheadPlanner(10 * GiB, BLOCK, WINDOW)
    planner.layout = TENSORS
    planner.observe(Extent(0, MiB))
    for number in (3, 7):
        planned(planner, tensor_reads(number, first, last, around=False))
        planner.observe(Extent(2020 * MiB + number * MiB, 2021 * MiB + number * MiB))
    for number in (12, 13):
        reads = tensor_reads(number, 0, 4)
        spare = [planner.is_spare(reads[quarter * 10 + 1]) for quarter in range(4)]
        assert spare == [quarter != first for quarter in range(4)]


def test_who_looks_at_the_beginning_of_tensors_alone_is_asked_page_by_page_again() -> None:
    planner = ReadaheadPlanner(10 * GiB, BLOCK, WINDOW)
    planner.layout = ODD
    for number in (3, 6, 1):
        start = odd_reads(number)[0].start
        planner.observe(Extent(start, start + MiB))
    assert planner.is_spare(Extent(odd_reads(8)[0].start, odd_reads(8)[0].start + MiB))


def test_a_run_stays_in_its_tensor_until_its_reader_leaves_it() -> None:
    planner = ReadaheadPlanner(10 * GiB, BLOCK, WINDOW, whole=True)
    planner.layout = TENSORS
    stop = TENSORS.parts[4].extent.stop
    first, last = tensor_reads(4, 0, 4), tensor_reads(5, 0, 4, around=False)
    assert max(planner.observe(read).ahead.stop for read in first) == stop
    assert max(planner.observe(read).ahead.stop for read in last) > TENSORS.parts[5].extent.stop


def test_the_header_is_a_part_too() -> None:
    planner = ReadaheadPlanner(10 * GiB, BLOCK, WINDOW, whole=True)
    planner.layout = TENSORS
    reads = sequential(0, 128 * KiB, 8)
    assert max(planner.observe(read).ahead.stop for read in reads) == MiB


def test_what_is_here_starts_nothing_that_is_not() -> None:
    planner = ReadaheadPlanner(10 * GiB, BLOCK, WINDOW, whole=True, cached=True)
    plans = [planner.observe(read) for read in sequential(GiB - 8 * MiB, MiB, 8)]
    assert all(plan.warm for plan in plans if plan.ahead)
    planner.fetched(planner.observe(Extent(GiB, GiB + MiB)).demand)
    cold = [planner.observe(read) for read in sequential(GiB + MiB, MiB, 20)]
    assert any(plan.ahead and not plan.warm for plan in cold)


def test_every_other_row_is_no_run() -> None:
    planner = ReadaheadPlanner(10 * GiB, BLOCK, WINDOW)
    rows = [Extent(n * 256 * KiB, n * 256 * KiB + 128 * KiB) for n in range(200)]
    assert sum(planned(planner, rows)) <= 1.1 * 200 * 128 * KiB


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


def test_what_lies_elsewhere_begins_a_run() -> None:
    planner = ReadaheadPlanner(GiB, BLOCK, WINDOW)
    assert planner.is_to_be_looked_at(Extent(0, MiB))
    assert not planner.is_astray(Extent(0, MiB))  # nobody has read anything yet
    planned(planner, sequential(0, MiB, 4))
    for start, begins in ((4 * MiB, False), (400 * MiB, True)):
        extent = Extent(start, start + MiB)
        assert planner.is_to_be_looked_at(extent) is begins
        assert planner.is_astray(extent) is begins


@pytest.mark.parametrize("start", [0, GiB // 2 + 4 * KiB])
def test_what_a_call_reads_is_fetched_at_once_and_no_more(start: int) -> None:
    planner = ReadaheadPlanner(GiB, BLOCK, WINDOW, is_far=lambda: True)
    reads = sequential(start, MiB, 16)
    first = planner.observe(reads[0], told=reads[-1].stop)
    assert first.ahead.size >= 8 * MiB
    ends = [planner.observe(read).ahead.stop for read in reads[1:]]
    assert max(ends) <= reads[-1].stop + BLOCK
    # The kernel may ask for more than the call; who goes on with another call reads on.
    more = sequential(reads[-1].stop, MiB, 4)
    assert planner.is_to_be_looked_at(more[0])
    assert planner.is_spare(more[0])
    assert not any(planner.observe(read).ahead for read in more[:2])
    assert any(planner.observe(read).ahead for read in more[2:])


def test_a_page_that_was_refused_to_one_call_is_wanted_by_the_next() -> None:
    """1 MiB at a time: the kernel asks for two, and the second is not of the first call."""
    planner = ReadaheadPlanner(GiB, BLOCK, WINDOW)
    planner.observe(Extent(0, MiB), told=MiB)
    assert planner.is_spare(Extent(MiB, 2 * MiB))
    page = Extent(MiB, MiB + 4 * KiB)
    planner.observe(page)
    assert planner.goes_on_to(page) >= 2 * MiB  # not page by page
    rest = Extent(page.stop, page.stop + MiB)
    assert planner.is_to_be_looked_at(rest)  # nobody knows how much this call reads
    assert planner.told(rest) == 0
    assert not planner.is_spare(rest)


def test_the_first_read_of_a_model_is_of_its_header() -> None:
    planner = ReadaheadPlanner(GiB, BLOCK, WINDOW, head=True)
    assert planner.is_astray(Extent(0, MiB))
    assert planner.is_astray(Extent(MiB, 2 * MiB))
    planner.observe(Extent(0, 4 * KiB))
    assert not planner.is_astray(Extent(4 * KiB, 8 * KiB))
    whole = ReadaheadPlanner(GiB, BLOCK, WINDOW, head=True, whole=True)
    small = ReadaheadPlanner(MiB, BLOCK, WINDOW, head=True)
    known = ReadaheadPlanner(GiB, BLOCK, WINDOW, head=True)
    known.layout = Layout(8, ())
    assert not any(each.is_astray(Extent(0, MiB)) for each in (whole, small, known))


def test_a_run_of_single_pages_is_sure_to_go_on_once_it_is_half_a_mib_long() -> None:
    planner = ReadaheadPlanner(GiB, BLOCK, WINDOW)
    sure = []
    for read in sequential(GiB // 2, 4 * KiB, 128):
        planner.observe(read)
        sure.append(planner.goes_on_to(read) - read.stop)
    assert not any(sure[:-1])
    assert sure[-1] == MiB


def test_a_run_of_single_pages_is_fetched_in_growing_pieces() -> None:
    planner = ReadaheadPlanner(GiB, BLOCK, WINDOW)
    reads = sequential(GiB // 2, 4 * KiB, 64)
    amounts = planned(planner, reads)
    assert sum(amounts) <= 256 * KiB * 3 // 2 + BLOCK
    assert sum(1 for amount in amounts if amount) <= 10  # requests, not one a block


def test_after_two_rows_of_one_length_the_next_is_known_at_its_first_page() -> None:
    planner = ReadaheadPlanner(GiB, BLOCK, WINDOW)
    for row in (10, 50):
        planned(planner, sequential(row * 10 * MiB, MiB, 2))
    first = Extent(300 * MiB, 300 * MiB + 4 * KiB)
    planner.observe(first)
    assert planner.goes_on_to(first) == 302 * MiB


def test_runs_that_end_within_one_read_of_each_other_are_of_the_shorter_length() -> None:
    planner = ReadaheadPlanner(GiB, BLOCK, WINDOW)
    for row, reads in ((10, 3), (50, 4)):
        planned(planner, sequential(row * 10 * MiB, MiB, reads))
    first = Extent(300 * MiB, 300 * MiB + 4 * KiB)
    planner.observe(first)
    assert planner.goes_on_to(first) == 303 * MiB


def test_who_calls_again_and_again_is_read_ahead_of() -> None:
    """As ``dd bs=1M``, whose every call says up to where it reads, and no further."""
    planner = ReadaheadPlanner(1024 * MiB, 32 * KiB, 32 * MiB, piece=8 * MiB)
    looks = 0
    ahead = 0
    for start in range(0, 256 * MiB, MiB):
        extent = Extent(start, start + MiB)
        looked_at = planner.is_to_be_looked_at(extent)
        looks += looked_at
        ahead = max(ahead, planner.observe(extent, extent.stop if looked_at else 0).ahead.stop)
    assert looks <= 4
    assert ahead > 264 * MiB
