"""Algorithms of convolutions, and the choice among them."""

import pytest

from superneurons.errors import InvalidInput, InvalidTrace
from superneurons.machines import find_machine
from superneurons.policies import decide, find_policy
from superneurons.schedules import Ledger, Run, Timing
from superneurons.sim import simulate
from superneurons.traces import Algorithm, Operation, Storage, Trace, find_trace
from superneurons.traces.cudnn import Window, backward, forward

K40C = find_machine("k40c")
MIB = 2**20


def by_name(algorithms):
    return {each.name: each for each in algorithms}


def window(batch=1, inputs=2, outputs=3, side=13, kernel=3, stride=1, padding=1):
    out = (side + 2 * padding - kernel) // stride + 1
    return Window(
        batch, inputs, outputs, (side,) * 2, (out,) * 2, (kernel,) * 2, stride, (padding,) * 2
    )


# -- the model, by hand ----------------------------------------------------------------------------


def test_an_fft_holds_half_spectra_of_images_filters_and_results():
    # 32 x 17 complex numbers of 8 bytes each: 4352 bytes.
    found = by_name(forward(window(batch=5, inputs=2, outputs=3)))["fft"]
    assert found.workspace_nbytes == 4352 * (5 * 2 + 5 * 3 + 2 * 3)


@pytest.mark.parametrize(("inputs", "outputs", "mib"), [(256, 384, 1208), (384, 384, 1573)])
def test_ffts_take_what_figure_12_has_for_conv3_and_conv4(inputs, outputs, mib):
    found = by_name(forward(window(300, inputs, outputs)))["fft"].workspace_nbytes / MIB
    assert found == pytest.approx(mib, rel=0.004)


def test_winograd_takes_four_multiplications_of_nine():
    found = by_name(forward(window(batch=64, inputs=512, outputs=512, side=14)))
    gemm = window(batch=64, inputs=512, outputs=512, side=14).gemm_flops
    assert found["winograd"].flops == pytest.approx(gemm * 4 / 9, rel=0.1)
    assert found["winograd"].workspace_nbytes == 0
    tiles = 64 * 4 * 4  # of 4 x 4 results
    assert found["winograd-nonfused"].workspace_nbytes == 4 * 36 * (tiles * (512 + 512) + 512 * 512)


def test_large_images_are_cut_into_tiles_in_the_workspace_of_one():
    found = by_name(forward(window(side=227)))
    assert (
        found["fft-tiling"].workspace_nbytes == by_name(forward(window()))["fft"].workspace_nbytes
    )
    assert found["fft"].workspace_nbytes == 8 * 256 * 129 * (2 + 3 + 6)
    assert "fft" not in by_name(forward(window(side=255)))  # 257 with its padding: too large


@pytest.mark.parametrize(
    ("shape", "names"),
    [
        (window(kernel=11, stride=4, padding=0, side=227), {"precomputed"}),
        (window(kernel=1, padding=0), {"precomputed"}),
        (window(kernel=5, padding=2), {"precomputed", "fft"}),
        (window(), {"precomputed", "fft", "winograd", "winograd-nonfused"}),
    ],
)
def test_not_every_algorithm_computes_every_convolution(shape, names):
    assert set(by_name(forward(shape))) == names


def test_backward_holds_the_workspaces_of_both_gradients():
    one = by_name(forward(window()))
    both = by_name(backward(window()))
    assert (
        both["winograd-nonfused+fft"].workspace_nbytes
        == one["winograd-nonfused"].workspace_nbytes + one["fft"].workspace_nbytes
    )
    assert both["fft+gemm"].flops == one["fft"].flops + window().gemm_flops
    assert "gemm+winograd" not in both  # filters' gradients have no fused one
    assert "gemm+gemm" not in both  # that is the operation itself


# -- in traces -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["alexnet:batch=2", "vgg16:batch=1", "resnet50:batch=1,image=64", "inceptionv4:batch=1"]
)
def test_algorithms_change_nothing_but_what_convolutions_may_do(name):
    plain, rich = find_trace(name), find_trace(f"{name},algorithms=cudnn")
    assert not any(op.algorithms for op in plain.operations)
    for one, other in zip(plain.operations, rich.operations, strict=True):
        if one.kind != "conv":
            assert not other.algorithms
        elif one.phase == "forward":
            assert other.algorithms
        assert (one.name, one.flops, one.reads) == (other.name, other.flops, other.reads)
    assert rich.name == f"{plain.name},algorithms=cudnn"
    assert find_trace(rich.name).facts.digest == rich.facts.digest != plain.facts.digest


def test_without_a_chooser_the_operation_itself_is_run():
    for policy in ("baseline", "liveness", "liveness+offload+recompute"):
        plain, rich = (
            simulate(find_trace(f"alexnet:batch=4{more}"), find_policy(policy), K40C)
            for more in ("", ",algorithms=cudnn")
        )
        assert plain.step_time_ns == rich.step_time_ns
        assert plain.device_peak_bytes == rich.device_peak_bytes


def timed(times, **algorithm):
    return Trace(
        name="t",
        places="everywhere",
        times=times,
        storages=(Storage(name="x", kind="activation", nbytes=4),),
        operations=(
            Operation(
                name="f",
                kind="conv",
                phase="forward",
                writes=("x",),
                device_ns=5 if times == "measured" else None,
                flops=9,
                algorithms=(Algorithm(name="other", **algorithm),),
            ),
        ),
    )


@pytest.mark.parametrize(
    ("trace", "sentence"),
    [
        (timed("measured", flops=3), "times are measured, but 'other' has no device_ns"),
        (timed("roofline", device_ns=3), "'other' has a device_ns, but the trace says times: ro"),
        (timed("roofline"), "'other' has neither flops nor moved_nbytes"),
    ],
)
def test_an_algorithm_has_a_time_as_its_trace_has(trace, sentence):
    with pytest.raises(InvalidTrace, match=sentence) as caught:
        trace.facts  # noqa: B018
    assert "operations[0].algorithms[0]" in str(caught.value)


def test_an_algorithm_without_a_time_takes_its_own_roofline():
    timing = Timing(timed("roofline", flops=43, moved_nbytes=0), K40C)
    assert timing.run_ns(0, 1) == K40C.roofline_ns(43, 0)
    assert Timing(timed("measured", device_ns=3), K40C).run_ns(0, 1) == 3


# -- the choice ------------------------------------------------------------------------------------

POLICIES = ("liveness+workspace", "superneurons", "liveness+offload+recompute+workspace")


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("budget", [2_400, 3_000, 12_288])
def test_each_operation_runs_by_the_fastest_that_fits(policy, budget):
    trace = find_trace("alexnet:batch=200,algorithms=cudnn")
    facts, timing = trace.facts, Timing(trace, K40C)
    schedule, ledger = decide(find_policy(policy), trace, K40C, budget * MIB)
    assert not ledger.short
    watched = Ledger(facts, budget * MIB, K40C.capacities)
    chosen = 0
    for step in schedule.instructions:
        if isinstance(step, Run):
            room = budget * MIB - watched.device_nbytes - facts.fresh_nbytes[step.op]
            count = len(trace.operations[step.op].algorithms)
            fitting = [k for k in range(count + 1) if facts.inside(step.op, k) <= room]
            best = min(timing.run_ns(step.op, k) for k in fitting)
            assert timing.run_ns(step.op, step.algorithm) == best
            chosen += step.algorithm > 0
            watched.run(step.op, step.algorithm)
        elif type(step).__name__ == "Rerun":
            watched.rerun(step.op, step.algorithm)
        elif type(step).__name__ in ("Free", "Discard", "Copy", "Fetch"):
            name = type(step).__name__.lower()
            tier = () if name == "free" else (step.tier,)
            getattr(watched, name)(step.storage, *tier)
    assert chosen


def test_more_memory_never_makes_a_step_with_workspaces_longer():
    trace, policy = find_trace("alexnet:batch=200,algorithms=cudnn"), find_policy(POLICIES[0])
    reports = [simulate(trace, policy, K40C, mib * MIB) for mib in range(2_400, 6_000, 300)]
    times = [report.step_time_ns for report in reports if report.fits]
    assert times == sorted(times, reverse=True)
    assert times[0] > times[-1]


def test_a_workspace_drives_nobody_out():
    trace, machine = find_trace("alexnet:batch=600,algorithms=cudnn"), K40C
    bare = find_trace("alexnet:batch=600")
    for budget in (3_500, 4_500, 6_000):
        rich, plain = (
            simulate(each, find_policy("superneurons"), machine, budget * MIB)
            for each in (trace, bare)
        )
        assert rich.copied_out_bytes == plain.copied_out_bytes
        assert rich.device_peak_bytes <= budget * MIB


def test_without_alternatives_there_is_nothing_to_choose():
    with pytest.raises(InvalidInput, match="needs workspaces; trace 'alexnet:batch=200' has"):
        decide(find_policy("workspace"), find_trace("alexnet"), K40C)
