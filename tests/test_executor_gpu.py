"""On a real GPU: training under every policy is plain PyTorch's bit for bit, bytes are the ledger's
at every place, and nothing is left behind.

    CUBLAS_WORKSPACE_CONFIG=:4096:8 python -m pytest -m gpu

A program that does not repeat itself in plain PyTorch on this GPU proves nothing and is skipped.
"""

import gc
import time
from functools import cache
from itertools import pairwise

import pytest

torch = pytest.importorskip("torch")

from programs import PROGRAMS  # noqa: E402
from test_executor_hazards import (  # noqa: E402
    a_graph,
    begun,
    compiled_function,
    compiled_module,
    dense,
    sparse_gradients,
    values_that_are_written_after_they_were_sent,
)
from test_zoo import TINY  # noqa: E402
from training import MACHINE, Everything, different, network, plain, state, trained  # noqa: E402

from superneurons.errors import DoesNotFit  # noqa: E402
from superneurons.executor import Executor  # noqa: E402
from superneurons.executor.cuda_backend import CudaBackend  # noqa: E402
from superneurons.policies import find_policy  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore"),  # of what has no deterministic algorithm
]
DEVICE = "cuda"
STEPS = 5
POLICIES = {
    "baseline": "baseline",
    "liveness": "liveness",
    "offload": "liveness+offload:kinds=conv/matmul/activation/norm/dropout/add/elementwise",
    "cache": "liveness+cache",
    "everything": Everything(),
    "recompute": "liveness+recompute:strategy=speed",
    "each time": "liveness+recompute:strategy=memory,kinds=conv/matmul/attention",
    "superneurons": "liveness+offload:kinds=conv/matmul+recompute:kinds=conv/matmul",
}
TIGHT = {"cache"}


BUILDS = PROGRAMS | {name: network(name) for name in TINY}


@pytest.fixture(autouse=True, scope="module")
def on_the_gpu():
    torch.set_default_device(DEVICE)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_default_device(None)


@cache
def control(name):
    """Return what plain training makes; skip if it makes another thing each time."""
    first, again = plain(BUILDS[name], STEPS), plain(BUILDS[name], STEPS)
    return first if not different(first, again) else None


def executor(policy, **options):
    return Executor(policy, machine=MACHINE, device=DEVICE, slab_nbytes=1 << 20, **options)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", BUILDS)
def test_training_is_that_of_plain_pytorch(name, policy):
    expected = control(name)
    if expected is None:
        pytest.skip("plain PyTorch does not repeat itself here")
    runs, found = fitting(BUILDS[name], POLICIES[policy], tight(name, policy))
    assert different(expected, found) == []
    assert [each for each in runs.notices if "takes more than is asked for" not in each] == []
    assert runs.report.mode == "executed"
    assert runs.differences == []
    assert len(runs.readings) == runs.plans[0].trace.facts.op_count
    assert runs.report.late_fetches == 0
    assert runs.report.not_freed_nbytes == 0


@pytest.mark.parametrize("name", ["convolutions", *TINY])
def test_what_goes_to_a_peer_comes_back_as_it_was(name):
    expected = control(name)
    if expected is None:
        pytest.skip("plain PyTorch does not repeat itself here")
    # Where there is one GPU alone, its own memory is the peer's: the same calls, another wire.
    here, peer = (torch.device("cuda", i % torch.cuda.device_count()) for i in (0, 1))
    runs = executor(Everything(tier="peer"), backend=CudaBackend(here, peer))
    assert different(expected, trained(BUILDS[name], runs, STEPS)) == []
    assert runs.notices == []
    assert runs.report.mode == "executed"
    assert runs.report.copied_in_nbytes > 0
    assert runs.slabs["peer"].peak_nbytes > 0
    assert runs.slabs["peer"].used_nbytes == 0


@pytest.mark.parametrize(
    "build", [sparse_gradients, a_graph, values_that_are_written_after_they_were_sent]
)
def test_a_step_that_no_recording_can_hold_is_kept(build):
    expected, again = (dense(plain(build, 6)) for _ in range(2))
    if different(expected, again):
        pytest.skip("plain PyTorch does not repeat itself here")
    step, runs = begun(build), executor(Everything())
    for _ in range(6):
        with runs.step():
            step()
    assert runs.report.mode == "kept"
    assert different(dense(state(step)), expected) == []
    assert runs.slabs["host"].used_nbytes == 0


@pytest.mark.parametrize("build", [compiled_function, compiled_module])
def test_what_is_compiled_runs_as_it_is_written(build):
    with torch.compiler.set_stance("force_eager"):
        expected = plain(build, STEPS)
    step, runs = begun(build), executor(Everything())
    for _ in range(STEPS):
        with runs.step():
            step()
    assert runs.report.mode == "executed"
    assert different(state(step), expected) == []


def tight(name, policy):
    """Return the least budget for a policy that does nothing without one."""
    if policy not in TIGHT:
        return None
    runs = executor("liveness")
    trained(BUILDS[name], runs, 3)
    if not runs.plans:
        pytest.skip(f"nothing to decide: {runs.notices}")
    return least(runs.plans[0].trace, POLICIES[policy])


def fitting(build, policy, budget):
    """Train in a budget, or in the first above it with room for this process's segments and for all
    workspaces."""
    for _ in range(40):
        runs = executor(policy, budget=budget)
        try:
            found = trained(build, runs, STEPS)
        except DoesNotFit:
            if budget is None:
                raise
        else:
            if budget is None or not any("workspaces" in each for each in runs.notices):
                return runs, found
        budget += 32 << 20
    raise AssertionError("no budget fits")


def test_the_recorded_step_has_its_order_and_is_found_in_the_segments():
    runs = executor("liveness")
    standings = []
    stands = runs.backend.standing
    runs.backend.standing = lambda addresses: standings.append(stands(addresses)) or standings[-1]
    trained(BUILDS["resnet50"], runs, STEPS)
    trace, standing = runs.plans[0].trace, standings[0]
    assert any(op.allocations for op in trace.operations)
    requested = {
        block.address: block.requested_nbytes
        for each in standing.segments
        for block in each.blocks
        if block.used
    }
    lasting = {"parameter", "parameter-gradient", "optimizer-state"}
    facts = trace.facts
    ours = [
        s
        for s, storage in enumerate(trace.storages)
        if storage.alive_at_start and storage.nbytes and storage.kind in lasting
    ]
    assert ours
    assert [requested.get(standing.addresses[s]) for s in ours] == [facts.nbytes[s] for s in ours]
    allocator, blocks = standing.allocator(facts, 1 << 40)
    assert [allocator.address(blocks[s]) for s in ours] == [standing.addresses[s] for s in ours]


def least(trace, policy):
    """Return the least budget, on a scale of a hundred, that a policy's schedule fits, with what
    the caching allocator takes for it."""
    from superneurons.policies import decide_reserved

    floor = trace.facts.floor_nbytes
    whole = floor + (1 << 26)
    for hundredth in range(101):
        budget = floor + (whole - floor) * hundredth // 100
        try:
            found = decide_reserved(find_policy(policy), trace, MACHINE, budget, "caching")
        except DoesNotFit:
            continue
        if not found.schedule.short_nbytes:
            return budget
    return None


@pytest.mark.parametrize("policy", POLICIES)
def test_a_thousand_steps_leave_nothing_behind(policy):
    budget = tight("convolutions", policy)

    def steps(count):
        for _ in range(count):
            with runs.step():
                training()
        gc.collect()
        torch.cuda.synchronize()
        host = runs.slabs["host"]
        objects = sum("superneurons" in str(type(each).__module__) for each in gc.get_objects())
        return torch.cuda.memory_allocated(), host.used_nbytes, host.held_nbytes, objects

    for _ in range(40):  # with more, where this process's segments leave too little
        torch.manual_seed(0)
        training, runs = PROGRAMS["convolutions"](), executor(POLICIES[policy], budget=budget)
        try:
            *before, objects = steps(100)
        except DoesNotFit:
            if budget is None:
                raise
            budget += 2 << 20
        else:
            break
    assert runs.report.mode == "executed"
    assert before[1] == 0
    *after, objects_after = steps(1_000)
    assert after == before
    assert objects_after <= objects


def test_the_peak_is_the_same_in_twenty_steps():
    torch.manual_seed(0)
    training = BUILDS["resnet50"]()
    runs = executor("liveness+offload")
    peaks = set()
    for i in range(23):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        with runs.step():
            training()
        if i > 2:
            stats = torch.cuda.memory_stats()
            peaks.add((stats["requested_bytes.all.peak"], stats["allocated_bytes.all.peak"]))
    assert len(peaks) == 1
    assert runs.plans[0].ledger.device_peak_nbytes == peaks.pop()[0]


@pytest.mark.parametrize("policy", ["liveness", "everything", "recompute"])
def test_a_clocked_step_is_plain_pytorch_and_its_stretches_are_the_whole_step(policy):
    theirs = control("convolutions")
    if theirs is None:
        pytest.skip("plain PyTorch does not repeat itself here")
    runs = executor(POLICIES[policy])
    torch.manual_seed(0)
    step = BUILDS["convolutions"]()
    for i in range(STEPS):
        runs.clock = i >= 3
        torch.cuda.synchronize()
        begin = time.perf_counter_ns()
        with runs.step():
            step()
        took = time.perf_counter_ns() - begin
    stretches = runs.clocked.stretches
    assert different(state(step), theirs) == []
    assert all(here.end == there.begin for here, there in pairwise(stretches))
    assert 0 < runs.clocked.ns < took
    assert runs.clocked.ns == sum(each.ns for each in stretches)
    assert min(each.ns for each in stretches) >= 0
    assert max(each.behind_ns for each in stretches) < took
    assert (sum(each.again_ns for each in stretches) > 0) == (policy == "recompute")
