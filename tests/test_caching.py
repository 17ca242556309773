"""The caching allocator: each rule by a case worked by hand, all of them against a plain model."""

from itertools import pairwise
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from superneurons.allocators.caching import CachingAllocator, Request
from superneurons.allocators.registry import ALLOCATORS, new_allocator
from superneurons.errors import UnknownName
from superneurons.machines import find_machine
from superneurons.policies import find_policy
from superneurons.sim import simulate
from superneurons.traces import find_trace

MIB = 1 << 20


class Spread:
    """Addresses with a gap after each segment, so that no two segments look like one."""

    def __init__(self, first=1 << 40, gap=64 * MIB):
        self._next = first
        self._gap = gap
        self.released = []

    def segment(self, nbytes):
        address = self._next
        self._next += nbytes + self._gap
        return address

    def range(self, nbytes):
        return self.segment(nbytes)

    def map(self, address, nbytes):
        return True

    def release(self, address, nbytes):
        self.released.append((address, nbytes))


def filled(*sizes, expandable=False, limit=None):
    """Return an allocator with blocks 0, 1, 2... of these sizes."""
    allocator = CachingAllocator(limit, expandable, Spread())
    for block, nbytes in enumerate(sizes):
        allocator.allocate(block, nbytes)
    return allocator


def sizes_of(allocator, *blocks):
    pieces = {piece.block: piece.nbytes for piece in allocator.pieces()}
    return [pieces[block] for block in blocks]


def free(allocator, *blocks):
    for block in blocks:
        allocator.free(block, 1)


# -- what a request takes --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nbytes", "allocated", "reserved"),
    [
        (1, 512, 2 * MIB),
        (512, 512, 2 * MIB),
        (513, 1024, 2 * MIB),
        (MIB, MIB, 2 * MIB),
        (MIB + 1, MIB + 512, 20 * MIB),
        (10 * MIB - 512, 10 * MIB - 512, 20 * MIB),
        (10 * MIB - 511, 10 * MIB, 10 * MIB),  # it is rounded first
        (10 * MIB, 10 * MIB, 10 * MIB),
        (10 * MIB + 1, 10 * MIB + 512, 12 * MIB),
        (13 * MIB - 512, 13 * MIB - 512, 14 * MIB),
        (13 * MIB, 14 * MIB, 14 * MIB),  # 1 MiB is left, and stays in the block
    ],
)
def test_a_first_request_takes_a_rounded_block_of_a_rounded_segment(nbytes, allocated, reserved):
    allocator = filled(nbytes)
    assert allocator.allocated_nbytes == allocator.allocated_peak_nbytes == allocated
    assert allocator.reserved_nbytes == allocator.reserved_peak_nbytes == reserved


def test_nothing_is_asked_for_a_block_of_no_bytes():
    allocator = filled(0)
    allocator.free(0, 0)
    assert (allocator.reserved_peak_nbytes, allocator.pieces()) == (0, [])


def test_small_requests_share_a_segment_and_large_ones_another():
    allocator = filled(MIB, MIB, 3 * MIB, 10 * MIB - 1, 5 * MIB)
    assert allocator.reserved_nbytes == 2 * MIB + 20 * MIB
    at = allocator.address
    assert at(1) == at(0) + MIB
    assert at(3) == at(2) + 3 * MIB
    assert at(4) == at(3) + 10 * MIB


def test_a_free_small_segment_serves_no_large_request():
    allocator = filled(MIB)
    free(allocator, 0)
    allocator.allocate(1, MIB + 1)
    assert allocator.reserved_nbytes == 22 * MIB


def test_a_free_large_segment_serves_no_small_request():
    allocator = filled(5 * MIB)
    free(allocator, 0)
    allocator.allocate(1, 1)
    assert allocator.reserved_nbytes == 22 * MIB


# -- which block, and how much of it ---------------------------------------------------------------


def test_the_smallest_block_that_fits_is_taken():
    # Free between blocks in use: 6 MiB, 4 MiB.
    allocator = filled(6 * MIB, 2 * MIB, 4 * MIB, 8 * MIB)
    place = allocator.address(2)
    free(allocator, 0, 2)
    allocator.allocate(4, 3 * MIB)
    assert allocator.address(4) == place


def test_of_two_blocks_of_one_size_the_one_at_the_lower_address_is_taken():
    allocator = filled(4 * MIB, 2 * MIB, 4 * MIB, 10 * MIB - 512)
    place = allocator.address(0)
    free(allocator, 2, 0)
    allocator.allocate(4, 4 * MIB)
    assert allocator.address(4) == place


@pytest.mark.parametrize(
    ("nbytes", "takes"), [(19 * MIB, 20 * MIB), (19 * MIB - 512, 19 * MIB - 512)]
)
def test_what_is_left_of_a_large_block_is_cut_off_if_it_is_more_than_1_mib(nbytes, takes):
    allocator = filled(5 * MIB)
    free(allocator, 0)
    allocator.allocate(1, nbytes)
    assert sizes_of(allocator, 1) == [takes]
    assert allocator.reserved_nbytes == 20 * MIB


def test_what_is_left_of_a_small_block_is_cut_off_down_to_512_bytes():
    allocator = filled(MIB, MIB - 512)
    allocator.allocate(2, 1)
    assert allocator.reserved_nbytes == 2 * MIB
    assert sizes_of(allocator, 0, 1, 2) == [MIB, MIB - 512, 512]


def test_a_freed_block_becomes_one_with_both_neighbours():
    allocator = filled(4 * MIB, 4 * MIB, 4 * MIB)
    place = allocator.address(0)
    free(allocator, 0, 2, 1)
    assert [(piece.address, piece.nbytes) for piece in allocator.pieces()] == [(place, 20 * MIB)]


def test_a_peak_stays_when_the_bytes_are_gone():
    allocator = filled(4 * MIB, 5 * MIB)
    free(allocator, 0, 1)
    allocator.allocate(2, 2 * MIB)
    assert allocator.allocated_nbytes == 2 * MIB
    assert allocator.allocated_peak_nbytes == 9 * MIB


# -- at the limit ----------------------------------------------------------------------------------


def test_at_the_limit_what_is_wholly_free_goes_back_before_a_second_try():
    allocator = filled(5 * MIB, 1, limit=40 * MIB)
    free(allocator, 0, 1)
    allocator.allocate(2, 30 * MIB)
    assert allocator.reserved_nbytes == 30 * MIB
    assert allocator.reserved_peak_nbytes == 30 * MIB
    assert (allocator.retries, allocator.failures) == (1, 0)


def test_all_that_is_free_goes_back_not_just_enough():
    allocator = filled(10 * MIB, 12 * MIB, 14 * MIB, limit=36 * MIB)
    free(allocator, 0, 1, 2)
    allocator.allocate(3, 16 * MIB)
    assert allocator.reserved_nbytes == 16 * MIB


def test_large_segments_go_back_before_small_ones_each_by_size_then_address():
    spread = Spread()
    allocator = CachingAllocator(addresses=spread)
    for block, nbytes in enumerate((MIB, 30 * MIB, 12 * MIB, 12 * MIB)):
        allocator.allocate(block, nbytes)
    places = [allocator.address(block) for block in range(4)]
    free(allocator, 0, 1, 3, 2)
    allocator.release_cached()
    sizes = [2 * MIB, 30 * MIB, 12 * MIB, 12 * MIB]
    assert spread.released == [(places[i], sizes[i]) for i in (2, 3, 1, 0)]
    assert allocator.reserved_nbytes == 0


def test_a_segment_with_one_block_in_use_stays_and_the_shortage_shows():
    allocator = filled(5 * MIB, 1 * MIB + 1, limit=40 * MIB)
    free(allocator, 0)
    allocator.allocate(2, 30 * MIB)
    assert allocator.reserved_peak_nbytes == 50 * MIB  # 10 MiB beyond the limit
    assert (allocator.retries, allocator.failures) == (1, 1)
    assert allocator.failed == Request(2, 30 * MIB)
    allocator.allocate(3, 60 * MIB)
    assert allocator.failures == 2
    assert allocator.failed == Request(2, 30 * MIB)


def test_a_request_that_just_fits_is_no_retry():
    allocator = filled(10 * MIB, 20 * MIB, limit=30 * MIB)
    assert (allocator.reserved_nbytes, allocator.retries) == (30 * MIB, 0)


# -- expandable segments ---------------------------------------------------------------------------


def test_an_expandable_segment_grows_by_pages_of_2_and_20_mib():
    allocator = filled(1, MIB, MIB, expandable=True)
    assert allocator.reserved_nbytes == 4 * MIB
    allocator.allocate(3, 5 * MIB)
    assert allocator.reserved_nbytes == 24 * MIB
    allocator.allocate(4, 30 * MIB)  # 15 MiB are there, one page brings 20 more
    assert allocator.reserved_nbytes == 44 * MIB
    assert allocator.address(4) == allocator.address(3) + 5 * MIB
    assert allocator.address(2) == allocator.address(0) + 512 + MIB


def test_an_expandable_block_is_cut_to_the_byte_rounded():
    allocator = filled(19 * MIB, 12 * MIB + 1, expandable=True)
    assert sizes_of(allocator, 0, 1) == [19 * MIB, 12 * MIB + 512]


def test_the_end_that_can_grow_counts_as_large():
    # Free: 14 MiB between blocks, and 4 MiB before unmapped addresses.
    allocator = filled(14 * MIB, 22 * MIB, expandable=True)
    place = allocator.address(0)
    free(allocator, 0)
    allocator.allocate(2, 3 * MIB)
    assert allocator.address(2) == place
    # With nothing else that fits the end serves, and need not grow for it.
    allocator.allocate(3, 10 * MIB)
    allocator.allocate(4, 4 * MIB)
    assert allocator.address(4) == allocator.address(1) + 22 * MIB
    assert allocator.reserved_nbytes == 40 * MIB


def test_only_whole_pages_within_a_free_block_are_unmapped_and_mapped_again_first():
    allocator = filled(5 * MIB, 60 * MIB, 5 * MIB, expandable=True)  # 80 MiB in four pages
    base = allocator.address(0)
    free(allocator, 1)  # from 5 to 65 MiB: pages 2 and 3 are wholly within
    allocator.release_cached()
    assert allocator.reserved_nbytes == 40 * MIB
    assert [(p.address - base, p.nbytes, p.mapped) for p in allocator.pieces()[:5]] == [
        (0, 5 * MIB, True),
        (5 * MIB, 15 * MIB, True),
        (20 * MIB, 40 * MIB, False),
        (60 * MIB, 5 * MIB, True),
        (65 * MIB, 5 * MIB, True),
    ]
    allocator.allocate(3, 21 * MIB)
    assert allocator.address(3) == base + 5 * MIB
    assert allocator.reserved_nbytes == 60 * MIB


def test_a_stretch_may_lead_over_free_and_unmapped_blocks():
    allocator = filled(20 * MIB, 5 * MIB, 20 * MIB, 20 * MIB, 15 * MIB, expandable=True)
    base = allocator.address(0)
    free(allocator, 0, 2, 3)
    allocator.release_cached()  # from 0 and from 40 MiB on, one page each
    free(allocator, 1, 4)  # free from 20 to 40 and from 60 to 80 MiB
    allocator.allocate(5, 70 * MIB)
    assert allocator.address(5) == base
    assert allocator.reserved_nbytes == 80 * MIB


def test_a_range_that_is_wholly_unmapped_is_dropped_and_a_new_one_opened():
    allocator = filled(5 * MIB, expandable=True)
    place = allocator.address(0)
    free(allocator, 0)
    allocator.release_cached()
    assert (allocator.pieces(), allocator.reserved_nbytes) == ([], 0)
    allocator.allocate(1, 5 * MIB)
    assert allocator.address(1) > place


def test_at_the_limit_free_pages_of_one_pool_serve_the_other():
    allocator = filled(30 * MIB, expandable=True, limit=40 * MIB)
    free(allocator, 0)
    allocator.allocate(1, 1)
    assert allocator.reserved_nbytes == 2 * MIB
    assert (allocator.retries, allocator.failures) == (1, 0)


def test_an_expandable_allocator_shows_a_shortage_too():
    allocator = filled(21 * MIB, 25 * MIB, expandable=True, limit=50 * MIB)
    assert allocator.reserved_peak_nbytes == 60 * MIB
    assert allocator.failures == 1


# -- against a plain model -------------------------------------------------------------------------


class Plain:
    """The same rules in the simplest terms: every segment is a list of its blocks.

    A block is [address, nbytes, state]; a state is its number, "free" or "unmapped".
    """

    def __init__(self, limit, expandable, addresses):
        self.limit = inf if limit is None else limit
        self.expandable = expandable
        self.addresses = addresses
        self.segments = {"small": [], "large": []}
        self.reserved = 0

    def allocate(self, number, nbytes):
        size = max(512, -(-nbytes // 512) * 512)
        pool = "small" if size <= MIB else "large"
        found = self.cached(pool, size)
        if found is None and not self.grow(pool, size):
            self.release()
            if not self.grow(pool, size):
                limit, self.limit = self.limit, inf
                assert self.grow(pool, size)
                self.limit = limit
        segment, i = found or self.grown
        block = segment[i]
        left = block[1] - size
        if left > (MIB if pool == "large" and not self.expandable else 511):
            segment.insert(i + 1, [block[0] + size, left, "free"])
            block[1] = size
        block[2] = number

    def cached(self, pool, size):
        fits = [
            (block[1], block[0], segment, i)
            for segment in self.segments[pool]
            for i, block in enumerate(segment)
            if block[2] == "free" and block[1] >= size
        ]
        if not fits:
            return None
        fits.sort(key=lambda fit: fit[:2])
        if self.expandable:

            def room(fit):
                after = fit[2][fit[3] + 1 :][:1]
                return fit[0] + sum(block[1] for block in after if block[2] == "unmapped")

            while len(fits) > 1 and room(fits[1]) < room(fits[0]):
                fits.pop(0)
        return fits[0][2:]

    def grow(self, pool, size):
        whole = 2 * MIB if pool == "small" else 20 * MIB
        if size >= 10 * MIB:
            whole = -(-size // (2 * MIB)) * 2 * MIB
        if self.reserved + whole > self.limit:
            return False
        if self.expandable:
            return self.expand(pool, size)
        self.reserved += whole
        self.segments[pool].append([[self.addresses.segment(whole), whole, "free"]])
        self.grown = self.segments[pool][-1], 0
        return True

    def expand(self, pool, size):
        page = 2 * MIB if pool == "small" else 20 * MIB
        for segment in sorted(self.segments[pool]):
            for i, start in enumerate(segment):
                if start[2] == "unmapped":
                    first = i - 1 if i and segment[i - 1][2] == "free" else i
                    room = 0
                    for block in segment[first:]:
                        if block[2] not in ("free", "unmapped"):
                            break
                        room += block[1]
                    if room >= size:
                        return self.map(segment, segment[first][0], size, page)
        nbytes = -(-max(1 << 46, size) // page) * page
        address = self.addresses.range(nbytes)
        segment = [[address, nbytes, "unmapped"]]
        self.segments[pool].append(segment)
        return self.map(segment, address, size, page)

    def map(self, segment, start, size, page):
        while True:
            merge(segment)
            i = next(i for i, block in enumerate(segment) if block[0] == start)
            if segment[i][2] == "free":
                if segment[i][1] >= size:
                    self.grown = segment, i
                    return True
                missing = size - segment[i][1]
                i += 1
            else:
                missing = size
            block = segment[i]
            assert block[2] == "unmapped"
            nbytes = -(-min(missing, block[1]) // page) * page
            self.reserved += nbytes
            left = block[1] - nbytes
            segment[i : i + 1] = [[block[0], nbytes, "free"]]
            if left:
                segment.insert(i + 1, [block[0] + nbytes, left, "unmapped"])

    def free(self, number):
        for segments in self.segments.values():
            for segment in segments:
                for block in segment:
                    if block[2] == number:
                        block[2] = "free"
                merge(segment)

    def release(self):
        for pool, segments in self.segments.items():
            page = 2 * MIB if pool == "small" else 20 * MIB
            for segment in list(segments):
                base = segment[0][0]
                if not self.expandable:
                    if len(segment) == 1 and segment[0][2] == "free":
                        self.reserved -= segment[0][1]
                        segments.remove(segment)
                    continue
                for address, nbytes, state in list(segment):
                    first = base - (base - address) // page * page
                    last = base + (address + nbytes - base) // page * page
                    if state == "free" and first < last:
                        i = segment.index([address, nbytes, state])
                        cut = [
                            [address, first - address, "free"],
                            [first, last - first, "unmapped"],
                            [last, address + nbytes - last, "free"],
                        ]
                        segment[i : i + 1] = [block for block in cut if block[1]]
                        self.reserved -= last - first
                        merge(segment)
                        if len(segment) == 1:
                            segments.remove(segment)

    def pieces(self):
        return sorted(
            (address, nbytes, state if isinstance(state, int) else None, state != "unmapped")
            for segments in self.segments.values()
            for segment in segments
            for address, nbytes, state in segment
        )


def merge(segment):
    """Make neighbours that are both free, or both unmapped, one."""
    for i in range(len(segment) - 1, 0, -1):
        if segment[i][2] in ("free", "unmapped") and segment[i - 1][2] == segment[i][2]:
            segment[i - 1][1] += segment.pop(i)[1]


edges = st.sampled_from([1, 512, MIB - 1, MIB, MIB + 1, 10 * MIB - 512, 10 * MIB, 20 * MIB])
request_sizes = st.one_of(
    edges,
    st.integers(1, 3000),
    st.integers(1, 4 * MIB),
    st.integers(1, 24).map(lambda n: n * MIB),
    st.integers(MIB, 70 * MIB),
)
# A number frees the block at that place among those in use; a size allocates.
programs = st.lists(
    st.tuples(st.just("free"), st.integers(0, 50)) | st.tuples(st.just("allocate"), request_sizes),
    max_size=60,
)
limits = st.none() | st.integers(0, 120).map(lambda n: n * MIB)
kinds = pytest.mark.parametrize("expandable", [False, True], ids=["plain", "expandable"])


def steps(program):
    """Yield ("allocate", block, bytes) and ("free", block, bytes), each free of a block in use."""
    used = {}
    for i, (verb, number) in enumerate(program):
        if verb == "allocate":
            used[i] = number
            yield verb, i, number
        elif used:
            block = sorted(used)[number % len(used)]
            yield verb, block, used.pop(block)


@kinds
@given(programs, limits)
def test_it_does_what_the_plain_model_does(expandable, program, limit):
    allocator = CachingAllocator(limit, expandable, Spread())
    plain = Plain(limit, expandable, Spread())
    for verb, block, nbytes in steps(program):
        if verb == "allocate":
            allocator.allocate(block, nbytes)
            plain.allocate(block, nbytes)
        else:
            allocator.free(block, nbytes)
            plain.free(block)
        assert allocator.reserved_nbytes == plain.reserved
        assert allocator.pieces() == plain.pieces()


@kinds
@given(programs, limits)
def test_bytes_are_kept_and_blocks_never_overlap(expandable, program, limit):
    allocator = CachingAllocator(limit, expandable, Spread())
    asked = {}
    for verb, block, nbytes in steps(program):
        getattr(allocator, verb)(block, nbytes)
        if verb == "allocate":
            asked[block] = nbytes
        else:
            del asked[block]
        pieces = allocator.pieces()
        assert {piece.block for piece in pieces} - {None} == asked.keys()
        assert all(piece.nbytes >= asked.get(piece.block, 0) for piece in pieces)
        assert sum(piece.nbytes for piece in pieces if piece.mapped) == allocator.reserved_nbytes
        used = sum(piece.nbytes for piece in pieces if piece.block is not None)
        assert used == allocator.allocated_nbytes <= allocator.reserved_nbytes
        for first, second in pairwise(pieces):
            assert first.address + first.nbytes <= second.address
        assert allocator.allocated_peak_nbytes >= allocator.allocated_nbytes
        assert allocator.reserved_peak_nbytes >= allocator.reserved_nbytes
    if limit is not None and not allocator.failures:
        beyond = 20 * MIB if expandable else 0  # whole pages are mapped
        assert allocator.reserved_peak_nbytes <= limit + beyond


@kinds
@given(programs, limits)
def test_when_all_is_freed_everything_can_go_back(expandable, program, limit):
    allocator = CachingAllocator(limit, expandable, Spread())
    used = {}
    for verb, block, nbytes in steps(program):
        getattr(allocator, verb)(block, nbytes)
        used[block] = nbytes if verb == "allocate" else 0
    for block, nbytes in used.items():
        allocator.free(block, nbytes)
    assert allocator.allocated_nbytes == 0
    allocator.release_cached()
    assert (allocator.reserved_nbytes, allocator.pieces()) == (0, [])


# -- in a simulation -------------------------------------------------------------------------------


def test_allocators_go_by_the_names_in_machine_files():
    assert sorted(ALLOCATORS) == ["caching", "caching-expandable", "cudamalloc", "exact", "pool"]
    for name in ALLOCATORS:
        allocator = new_allocator(name)
        allocator.allocate(0, 30 * MIB)
        allocator.free(0, 30 * MIB)
        assert allocator.allocated_peak_nbytes == 30 * MIB
        assert allocator.reserved_peak_nbytes == {"caching-expandable": 40 * MIB}.get(
            name, 30 * MIB
        )
    with pytest.raises(UnknownName, match="no allocator 'lazy'; there are: caching, caching-exp"):
        new_allocator("lazy")


@pytest.mark.parametrize("name", ALLOCATORS)
def test_a_machine_takes_another_allocator_by_override(name):
    machine = find_machine(f"k40c:allocator={name}")
    assert machine.allocator == name
    report = simulate(find_trace("alexnet:batch=200"), find_policy("liveness"), machine)
    assert report.allocator == name
    assert report.fits
    if name == "exact":
        assert report.reserved_peak_bytes == report.device_peak_bytes
    else:
        assert report.device_peak_bytes < report.reserved_peak_bytes < report.limit_bytes


def test_a_schedule_fits_only_if_what_is_reserved_does():
    trace, policy = find_trace("alexnet:batch=200"), find_policy("liveness")
    exact = simulate(trace, policy, find_machine("k40c"))
    budget = exact.device_peak_bytes
    assert simulate(trace, policy, find_machine("k40c"), budget).fits
    report = simulate(trace, policy, find_machine("k40c:allocator=caching"), budget)
    assert not report.fits
    assert report.short_bytes == report.reserved_peak_bytes - report.limit_bytes > 0


def test_under_a_limit_the_cache_is_given_back_before_a_schedule_does_not_fit():
    trace, policy = find_trace("alexnet:batch=200"), find_policy("liveness")
    machine = find_machine("k40c:allocator=caching")
    free_run = simulate(trace, policy, machine)
    budget = free_run.reserved_peak_bytes - 100 * MIB
    report = simulate(trace, policy, machine, budget)
    assert report.fits
    assert free_run.device_peak_bytes <= report.reserved_peak_bytes <= budget


# -- where asking may fail -------------------------------------------------------------------------


@pytest.mark.parametrize("expandable", [False, True])
def test_what_may_fail_takes_nothing_beyond_the_limit(expandable):
    allocator = filled(20 * MIB, 20 * MIB, expandable=expandable, limit=50 * MIB)
    free(allocator, 1)
    assert not allocator.try_allocate(2, 40 * MIB)
    assert (allocator.retries, allocator.failures) == (1, 0)
    assert allocator.allocated_nbytes == allocator.reserved_nbytes == 20 * MIB
    assert allocator.try_allocate(2, 20 * MIB)
    assert allocator.allocated_nbytes == 40 * MIB
    assert allocator.try_allocate(3, 0)
    assert allocator.failures == 0
