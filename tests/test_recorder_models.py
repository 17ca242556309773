"""Recorded networks: their bytes, their schedules, and training that recording does not change."""

import gc
from functools import cache

import pytest

torch = pytest.importorskip("torch")

from plainstep import (  # noqa: E402
    MACHINE,
    difference,
    hold_differences,
    holds_of,
    peak,
    replay,
    watch,
)
from programs import FORMULAS, PROGRAMS  # noqa: E402
from test_zoo import TINY  # noqa: E402

from superneurons import zoo  # noqa: E402
from superneurons.executor import Recorder, record  # noqa: E402
from superneurons.policies import decide, find_policy  # noqa: E402
from superneurons.schedules import check  # noqa: E402
from superneurons.sim import simulate  # noqa: E402
from superneurons.traces import Trace, read_trace, write_trace  # noqa: E402

NETWORKS = {name: lambda name=name: getattr(zoo, name)(**TINY[name]) for name in TINY}
BUILDS = PROGRAMS | NETWORKS
POLICIES = ("liveness", "liveness+offload", "superneurons", "liveness+offload+recompute")


@pytest.fixture(autouse=True, scope="module")
def quick():
    """One thread, and nothing for the garbage collector to walk: steps are tiny here."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    watch(PROGRAMS["chain"])  # what is imported late is there now
    record(PROGRAMS["chain"](), "step")
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
    torch.set_num_threads(threads)


@cache
def recorded(name: str) -> Trace:
    torch.manual_seed(0)
    return record(BUILDS[name](), name)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_takes_the_bytes_of_its_plain_step(name):
    plain, trace = watch(NETWORKS[name]), recorded(name)
    replayed = replay(trace)
    assert difference(plain.bare, plain.hooked) == ""
    assert difference(plain.bare, replayed) == ""
    assert hold_differences(plain.holds, holds_of(trace)) == []
    assert peak(replayed) == peak(plain.bare)


@pytest.mark.parametrize("name", BUILDS)
def test_a_recorded_step_is_valid_and_can_be_scheduled(name):
    trace = recorded(name)
    floor = trace.facts.floor_nbytes
    for policy in POLICIES:
        for budget in (None, floor):
            decision = decide(find_policy(policy), trace, MACHINE, budget)
            assert check(trace, decision.schedule).device_peak_nbytes >= floor


@pytest.mark.parametrize("name", ["convolutions", "skips", "gpt"])
def test_what_is_offloaded_leaves_the_device(name):
    trace = recorded(name)
    kinds = "/".join(sorted({op.kind for op in trace.operations}))
    policy = f"liveness+offload:release=immediate,lookahead=0,kinds={kinds}"
    keeps = decide(find_policy("liveness"), trace, MACHINE).ledger
    offloads = decide(find_policy(policy), trace, MACHINE).ledger
    assert offloads.copied_out_nbytes >= offloads.copied_in_nbytes > 0
    assert offloads.device_peak_nbytes < keeps.device_peak_nbytes


@pytest.mark.parametrize("name", BUILDS)
def test_a_recorded_step_survives_a_file(name, tmp_path):
    trace = recorded(name)
    path = tmp_path / "step.json.gz"
    write_trace(trace, path)
    read = read_trace(path)
    assert read.facts.digest == trace.facts.digest
    assert read.operations == trace.operations
    assert read.saves == trace.saves
    assert read.releases == trace.releases
    assert read.notes == trace.notes


@pytest.mark.parametrize("name", ["residual", "gpt"])
def test_a_recorded_step_can_be_simulated(name):
    trace = recorded(name)
    report = simulate(trace, find_policy("superneurons"), MACHINE)
    assert report.fits
    assert report.step_time_ns >= report.compute_ns > 0


# -- numerics --------------------------------------------------------------------------------------


def after(build, seed: int, steps: int, recording: bool) -> dict[str, object]:
    """Return all that training has changed after some steps."""
    torch.manual_seed(seed)
    step = build()
    recorder = Recorder("step")
    for _ in range(steps):
        if recording:
            with recorder.step():
                step()
        else:
            step()
    if recording:
        assert recorder.done
    found = {"random": torch.get_rng_state()}
    found |= {name: tensor.clone() for name, tensor in step.model.state_dict().items()}
    for name, parameter in step.model.named_parameters():
        found[f"{name}.grad"] = parameter.grad
    for i, optimizer in enumerate(optimizers_of(step)):
        for number, state in optimizer.state_dict()["state"].items():
            found |= {f"{i}.{number}.{key}": value for key, value in state.items()}
    return found


def optimizers_of(step) -> tuple[torch.optim.Optimizer, ...]:
    return step.optimizers if hasattr(step, "optimizers") else (step.optimizer,)


def bits(value: object) -> object:
    """Return a value as something that compares by the bit, not-a-numbers included."""
    if not isinstance(value, torch.Tensor):
        return value
    data = value.detach().contiguous().view(-1).view(torch.uint8)
    return value.dtype, tuple(value.shape), value.stride(), bytes(data.tolist())


@pytest.mark.parametrize("name", BUILDS | FORMULAS)
def test_recording_does_not_change_training(name):
    build = (BUILDS | FORMULAS)[name]
    plain = after(build, 3, 4, recording=False)
    seen = after(build, 3, 4, recording=True)
    assert plain.keys() == seen.keys()
    assert [key for key in plain if bits(plain[key]) != bits(seen[key])] == []
