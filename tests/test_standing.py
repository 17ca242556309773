"""A process as it stands: the model goes on from segments as the process itself would."""

from itertools import count
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from test_snapshot import Recorder

from superneurons.allocators.caching import CachingAllocator
from superneurons.allocators.occupy import Process, go_on
from superneurons.allocators.standing import Standing, Taken
from superneurons.errors import DoesNotFit
from superneurons.machines import find_machine
from superneurons.policies import decide, decide_reserved, find_policy
from superneurons.policies.reserve import MARGIN
from superneurons.traces import Operation, Release, Storage, Trace, find_trace
from superneurons.traces.readers.snapshot_log import read_snapshot, segments_of

DATA = Path(__file__).resolve().parent / "data"
MIB = 1 << 20
H200 = find_machine("h200")

kinds = pytest.mark.parametrize("expandable", [False, True], ids=["default", "expandable"])
sizes = st.one_of(
    st.integers(1, 5000),
    st.integers(1, 60).map(lambda n: n * MIB // 2),
    st.integers(MIB - 600, 13 * MIB),
)
steps = st.lists(st.tuples(st.sampled_from(["allocate", "free", "free"]), sizes), max_size=60)


def there(**nbytes: int) -> Trace:
    """Return a step at whose start storages of so many bytes are alive; *a* is read."""
    return Trace(
        name="standing",
        places="everywhere",
        times="none",
        storages=tuple(
            Storage(name=name, kind="parameter", nbytes=n, alive_at_start=True)
            for name, n in nbytes.items()
        ),
        operations=(
            Operation(name="f", kind="conv", phase="forward", reads=(next(iter(nbytes)),)),
        ),
    )


def segment(address: int, *blocks: tuple[int, bool], **fields: object) -> dict[str, object]:
    """Return a segment as torch tells of it, of blocks of so many bytes, in use or not."""
    told = [
        {"size": n, "requested_size": n, "state": "active_allocated" if used else "inactive"}
        for n, used in blocks
    ]
    return {
        "address": address,
        "total_size": sum(n for n, _ in blocks),
        "segment_type": "large",
        "blocks": told,
    } | fields


def standing(*segments, addresses=None, expandable=False):
    return Standing(segments_of(list(segments), 0), 0, expandable, addresses or {})


def pieces(allocator):
    return [each for each in allocator.pieces() if each.mapped]


# -- which block is whose --------------------------------------------------------------------------


def test_a_storage_has_the_block_at_its_address():
    facts = there(a=4 * MIB, b=4 * MIB).facts
    held = segment(0, (4 * MIB, True), (4 * MIB, False), (4 * MIB, True), (8 * MIB, False))
    stands = standing(held, addresses={0: 8 * MIB, 1: 0})
    allocator, blocks = stands.allocator(facts, 1 << 40)
    assert [allocator.address(blocks[s]) for s in (0, 1)] == [8 * MIB, 0]
    assert allocator.reserved_nbytes == 20 * MIB
    assert allocator.allocated_nbytes == 8 * MIB


@pytest.mark.parametrize("addresses", [{}, {0: 99}, {0: 12 * MIB}], ids=["none", "gone", "other"])
def test_a_storage_that_is_not_there_has_a_block_of_its_size(addresses):
    held = segment(0, (12 * MIB, True), (4 * MIB, True), (4 * MIB, True))
    allocator, blocks = standing(held, addresses=addresses).allocator(
        there(a=4 * MIB).facts, 1 << 40
    )
    assert allocator.address(blocks[0]) == 12 * MIB


def test_what_has_no_block_at_all_is_asked_for():
    trace = there(a=4 * MIB, b=30 * MIB)
    schedule = decide(find_policy("liveness"), trace, H200, None).schedule
    allocator, blocks = standing(segment(0, (4 * MIB, True))).allocator(trace.facts, 1 << 40)
    assert list(blocks) == [0]
    go_on(trace, schedule, allocator, blocks)
    assert allocator.reserved_nbytes == 34 * MIB


def test_what_is_no_storages_stays():
    held = segment(0, (4 * MIB, True), (16 * MIB, True)), segment(64 * MIB, (20 * MIB, True))
    allocator, _ = standing(*held).allocator(there(a=4 * MIB).facts, 1 << 40)
    allocator.release_cached()
    assert allocator.reserved_nbytes == allocator.allocated_nbytes == 40 * MIB


def test_segments_that_a_step_cannot_use_are_apart():
    held = (
        segment(0, (4 * MIB, True)),
        segment(64 * MIB, (2 * MIB, False), stream=7),
        segment(128 * MIB, (6 * MIB, False), segment_pool_id=(0, 1)),
        segment(192 * MIB, (8 * MIB, True), is_expandable=True),
        segment(256 * MIB, (100 * MIB, True), device=1),
    )
    stands = standing(*held)
    allocator, _ = stands.allocator(there(a=4 * MIB).facts, 1 << 40)
    assert stands.apart == Taken(8 * MIB, 16 * MIB)
    assert allocator.reserved_nbytes == 4 * MIB
    assert standing(*held, expandable=True).apart == Taken(4 * MIB, 12 * MIB)


def test_pages_of_a_range_are_mapped_again_between_those_that_are_there():
    held = [segment(k * 20 * MIB, (20 * MIB, True), is_expandable=True) for k in (1, 2, 4)]
    allocator, blocks = standing(*held, expandable=True).allocator(there(a=20 * MIB).facts, 1 << 40)
    allocator.allocate(1000, 20 * MIB)
    allocator.allocate(1001, 20 * MIB)
    assert [allocator.address(n) // MIB for n in (1000, 1001)] == [60, 100]
    assert allocator.address(blocks[0]) == 20 * MIB


# -- the model goes on as the process would --------------------------------------------------------


class OnDevice(Recorder):
    """A process whose segments lie as the model has them: each below the others."""

    _low = 1 << 40

    def range(self, nbytes):
        if self.expandable:
            return super().range(nbytes)
        self._low -= nbytes
        self._pools[self._low] = self._small
        return self._low


def numbered(recorder, used):
    """Return a recorder's process as it stands, for a trace of what it has in use."""
    facts = there(**{f"s{k}": recorder._asked[block] for k, block in enumerate(used)}).facts
    addresses = {k: recorder.allocator.address(block) for k, block in enumerate(used)}
    stands = Standing(segments_of(recorder.segments(), 0), 0, recorder.expandable, addresses)
    return stands, facts


@kinds
@given(before=steps, after=steps, limit=st.sampled_from([1 << 40, 150 * MIB, 90 * MIB]))
def test_a_model_that_begins_with_a_processes_segments_does_what_that_does(
    expandable, before, after, limit
):
    recorder = OnDevice(expandable, limit)
    # What torch does not tell is where a range begins: so what is there first stays.
    used, fresh = ["small", "large"], count(1000)
    recorder.allocate("small", 700)
    recorder.allocate("large", 5 * MIB)

    def run(program, allocate, free):
        for verb, nbytes in program:
            if verb == "allocate":
                used.append(next(fresh))
                allocate(used[-1], nbytes)
            elif len(used) > 2:
                free(used.pop(2 + nbytes % (len(used) - 2)))
            yield

    for _ in run(before, recorder.allocate, recorder.free):
        pass
    recorder.empty_cache()
    stands, facts = numbered(recorder, used)
    model, blocks = stands.allocator(facts, limit)
    process = recorder.allocator
    names = {block: blocks[k] for k, block in enumerate(used)}

    def shape(allocator):
        return [(piece.nbytes, piece.block is None) for piece in pieces(allocator)]

    assert pieces(model) == [
        piece._replace(block=names.get(piece.block)) for piece in pieces(process)
    ]
    retries, failures = process.retries, process.failures

    def allocate(block, nbytes):
        names[block] = block
        recorder.allocate(block, nbytes)
        model.allocate(names[block], nbytes)

    def free(block):
        recorder.free(block)
        model.free(names[block], 1)

    for _ in run(after, allocate, free):
        assert model.reserved_nbytes == process.reserved_nbytes
        assert model.allocated_nbytes == process.allocated_nbytes
        assert shape(model) == shape(process)
    assert (model.retries, model.failures) == (
        process.retries - retries,
        process.failures - failures,
    )


@pytest.mark.parametrize(
    "name",
    ["snapshot-h200", "snapshot-h200-expandable", "snapshot-h200-limited"],
)
def test_the_segments_of_an_h200_are_taken_as_they_are(name):
    path = DATA / f"{name}.pickle.gz"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    found = read_snapshot(path).segments
    stands = Standing(found, 0, name.endswith("expandable"), {})
    allocator, _ = stands.allocator(there(a=1).facts, 1 << 40)
    assert stands.apart == Taken(0, 0)
    assert allocator.reserved_nbytes == sum(each.nbytes for each in found)
    assert [
        (piece.address, piece.nbytes, piece.block is not None) for piece in pieces(allocator)
    ] == [
        (block.address, block.nbytes, block.used)
        for each in sorted(found, key=lambda each: each.address)
        for block in each.blocks
    ]


# -- what a schedule takes of it -------------------------------------------------------------------


@pytest.fixture
def working() -> Trace:
    """A convolution with a workspace of 60 MiB beside a result of 20 MiB."""
    return Trace(
        name="working",
        places="everywhere",
        times="none",
        storages=(
            Storage(name="w", kind="parameter", nbytes=4 * MIB, alive_at_start=True),
            Storage(name="a", kind="activation", nbytes=20 * MIB),
        ),
        operations=(
            Operation(
                name="conv",
                kind="conv",
                phase="forward",
                reads=("w",),
                writes=("a",),
                workspace_nbytes=60 * MIB,
                allocations=(0, 60 * MIB, -1),
            ),
        ),
        releases=(Release(storage="a", place=1),),
    )


def reserved(trace, budget, *held):
    return decide_reserved(find_policy("liveness"), trace, H200, budget, "caching", standing(*held))


def test_a_step_fits_beside_what_the_process_has(working):
    trace = working
    room = 84 * MIB * 200 // 199 + 2 * MIB
    assert reserved(trace, room, segment(0, (4 * MIB, True))).leaner == ()


def test_the_peaks_are_those_of_the_whole_process(working):
    elsewhere = segment(64 * MIB, (2 * MIB, True), (6 * MIB, False), stream=7)
    found = reserved(working, None, segment(0, (4 * MIB, True)), elsewhere)
    assert found.peaks == Taken((4 + 20 + 60 + 2) * MIB, (4 + 20 + 60 + 8) * MIB)
    unknown = decide_reserved(find_policy("liveness"), working, H200, None, "caching")
    assert unknown.peaks is None


def test_where_there_is_no_room_for_a_workspace_a_convolution_does_without(working):
    held = segment(0, (4 * MIB, True), (16 * MIB, True))
    found = reserved(working, 92 * MIB, held)
    assert found.leaner == (0,)
    assert found.schedule.short_nbytes == 0


def test_another_operation_cannot_do_without(working):
    told = Trace.__struct_fields__
    fields = {name: getattr(working, name) for name in told}
    [conv] = working.operations
    matmul = Operation(
        name="matmul",
        kind="matmul",
        phase="forward",
        reads=conv.reads,
        writes=conv.writes,
        workspace_nbytes=conv.workspace_nbytes,
        allocations=conv.allocations,
    )
    held = segment(0, (4 * MIB, True), (16 * MIB, True))
    with pytest.raises(DoesNotFit, match="would take"):
        reserved(Trace(**fields | {"operations": (matmul,)}), 92 * MIB, held)


def test_where_there_is_no_room_for_a_result_it_does_not_fit(working):
    held = segment(0, (4 * MIB, True), (76 * MIB, True))
    with pytest.raises(DoesNotFit, match="would take"):
        reserved(working, 90 * MIB, held)


def beside(trace: Trace, nbytes: int) -> Trace:
    """Return a step that keeps a storage of so many bytes while another computes."""
    [conv] = trace.operations
    first = Operation(name="f", kind="act", phase="forward", reads=("w",), writes=("b",))
    last = Operation(name="g", kind="act", phase="forward", reads=("b",))
    return replace(
        trace,
        storages=(*trace.storages, Storage(name="b", kind="activation", nbytes=nbytes)),
        operations=(first, conv, last),
        releases=(Release(storage="a", place=2), Release(storage="b", place=3)),
    )


def alone(room):
    needs = f"needs 84.000 MiB, {84 * MIB - room} bytes more"
    return f"operation 'conv' alone, with what is always there, {needs}"


def test_a_convolution_that_is_too_large_by_itself_has_a_smaller_workspace(working):
    found = reserved(working, 50 * MIB, segment(0, (4 * MIB, True)))
    assert found.leaner == (0,)
    assert found.trace.operations[0].allocations == (0, 26 * MIB, -1)
    assert found.ledger.device_peak_nbytes == 50 * MIB
    assert found.schedule.digest == found.trace.facts.digest != working.facts.digest


@pytest.mark.parametrize("held", [0, 2 * MIB])
def test_without_any_workspace_it_may_still_not_fit(working, held):
    room = 24 * MIB + held - 1
    policy = find_policy("liveness")
    with pytest.raises(DoesNotFit, match=alone(room)):
        decide(policy, working, H200, room)
    with pytest.raises(DoesNotFit, match=alone(room)):
        reserved(working, room, segment(0, (4 * MIB, True), (held, True)))


def test_a_convolution_that_is_short_under_a_schedule_has_a_smaller_workspace(working):
    trace, held = beside(working, 30 * MIB), segment(0, (4 * MIB, True))
    exact = decide(find_policy("liveness"), trace, H200, 90 * MIB).schedule
    assert (exact.short_nbytes, exact.short_op) == (24 * MIB, 1)
    found = reserved(trace, 90 * MIB, held)
    assert (found.leaner, found.schedule.short_nbytes) == ((1,), 0)
    assert found.trace.facts.inside_nbytes == [0, 36 * MIB, 0]
    model, blocks = standing(held).allocator(trace.facts, 90 * MIB)
    assert go_on(trace, found.schedule, model, blocks, lambda nbytes: 0).denied == {1}
    assert model.failures == 0


@pytest.mark.parametrize(("kind", "kept"), [("conv", 70 * MIB), ("matmul", 30 * MIB)])
def test_a_schedule_that_workspaces_do_not_help_says_what_it_is_short_of(working, kind, kept):
    trace = beside(working, kept)
    operations = [replace(op, kind=kind) if op.name == "conv" else op for op in trace.operations]
    trace = replace(trace, operations=tuple(operations))
    found = reserved(trace, 90 * MIB, segment(0, (4 * MIB, True)))
    assert (found.leaner, found.trace) == ((), trace)
    assert (found.schedule.short_nbytes, found.schedule.short_op) == (84 * MIB + kept - 90 * MIB, 1)


def test_a_recorded_step_runs_where_there_is_no_room_for_its_workspaces():
    trace, budget = find_trace("resnet50-b128"), 2100 * MIB
    policy, stands = find_policy("liveness+cache"), Standing([], 0, True, {})
    found = decide_reserved(policy, trace, H200, budget, "caching-expandable", stands)
    assert trace.facts.floor_op in found.leaner
    assert {trace.operations[op].kind for op in found.leaner} == {"conv"}
    assert found.ledger.device_peak_nbytes <= found.schedule.limit_nbytes < budget
    for leaner in (lambda nbytes: 0, lambda nbytes: nbytes // 2, lambda nbytes: nbytes - MIB):
        model, blocks = stands.allocator(trace.facts, budget)
        outlook = go_on(trace, found.schedule, model, blocks, lambda n, f=leaner: max(0, f(n)))
        assert model.failures == 0
        assert outlook.denied <= set(found.leaner)
    model, blocks = stands.allocator(trace.facts, budget)
    go_on(trace, found.schedule, model, blocks)
    assert model.failures > 0


def test_a_recorded_step_that_workspaces_do_not_help_is_refused_as_ever():
    trace, budget = find_trace("resnet50-b128"), 1700 * MIB
    policy, stands = find_policy("liveness+cache"), Standing([], 0, True, {})
    with pytest.raises(DoesNotFit) as plain:
        decide(policy, trace, H200, budget)
    with pytest.raises(DoesNotFit) as refused:
        decide_reserved(policy, trace, H200, budget, "caching-expandable", stands)
    assert str(refused.value) == str(plain.value)


@kinds
def test_a_recorded_step_fits_where_it_has_run(expandable):
    """A process whose steps kept little, then runs by a schedule that keeps as much as fits."""
    trace, budget = find_trace("resnet50-b128"), 10 << 30
    careful = decide(find_policy("liveness+offload:lookahead=0"), trace, H200, None).schedule
    recorder = Recorder(expandable)

    class Asked(CachingAllocator):
        """What a process asks for, put to the recorder."""

        def allocate(self, block, nbytes):
            if nbytes:
                recorder.allocate(block, nbytes)

        def free(self, block, nbytes):
            if nbytes:
                recorder.free(block)

    process = Process(trace.facts, Asked())
    process.begin_fresh()
    process.step(careful.instructions)
    process.repeat()
    process.step(careful.instructions)
    process.repeat()
    recorder.empty_cache()
    addresses = {
        s: recorder.allocator.address(block)
        for s, block in process._block.items()
        if trace.facts.nbytes[s]
    }
    stands = Standing(segments_of(recorder.segments(), 0), 0, expandable, addresses)
    name = "caching-expandable" if expandable else "caching"
    policy = find_policy("liveness+cache")
    found = decide_reserved(policy, trace, H200, budget, name, stands)
    assert found.leaner == ()
    assert found.trace is trace
    model, blocks = stands.allocator(trace.facts, budget)
    assert sorted(blocks) == sorted(addresses)
    go_on(trace, found.schedule, model, blocks)
    assert model.failures == 0
    exact = decide(policy, trace, H200, budget)
    model, blocks = stands.allocator(trace.facts, budget)
    go_on(trace, exact.schedule, model, blocks)
    assert model.failures > 0


def test_a_schedule_with_which_memory_comes_and_goes_in_each_step_is_not_the_first_choice():
    trace, budget = find_trace("densenet121-b64"), 8 << 30
    policy, stands = find_policy("liveness+cache"), Standing([], 0, False, {})

    def outlook(schedule):
        model, blocks = stands.allocator(trace.facts, budget - budget // MARGIN)
        found = go_on(trace, schedule, model, blocks)
        peaks = Taken(model.allocated_peak_nbytes, model.reserved_peak_nbytes)
        return model.failures, found.late_retries, peaks

    decided = decide_reserved(policy, trace, H200, budget, "caching", stands)
    found = decided.schedule
    assert outlook(found) == (0, 0, decided.peaks)
    # With a little more it would run, too, but torch would ask the driver again in each step.
    failures, retries, _ = outlook(decide(policy, trace, H200, budget * 39 // 40).schedule)
    assert failures == 0 < retries
    assert budget * 19 // 20 < found.limit_nbytes < budget * 39 // 40
