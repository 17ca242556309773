"""Machines as fast as the paper's were, by as few printed figures as will do.

Kernel times of 2017 cannot be measured any more, and a roofline at the vendor's rates is three
times as fast as the paper's kernels. So four figures are taken from ResNet50 alone, and everything
else is predicted:

- the arithmetic and the memory rate of the K40c from its speed with the pool (Table 2) and the
  share of convolutions in its time (Fig. 8a);
- what cudaMalloc and cudaFree take from its speed without the pool (Table 2);
- how much better kernels use a TITAN Xp from its speed at the smallest batch (Fig. 14).
"""

from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Final

from ...errors import DoesNotFit
from ...machines import Machine, find_machine
from ...policies import decide, find_policy
from ...reports import Report
from ...schedules import Rerun, Run, Timing
from ...sim import simulate
from ...traces import Trace
from .networks import layer_type, network
from .printed import printed

NETWORK: Final = "resnet50"
"""What is calibrated on, in every figure that needs times."""
POLICY: Final = "superneurons"
_PLAIN: Final = "liveness+workspace"
_ROUNDS: Final = 30
_ATTEMPTS: Final = 20


def batch_of(name: str, others: int) -> int:
    """Return the batch of Table 2 and Figure 11: 128 for AlexNet, another for the rest."""
    return 128 if name == "alexnet" else others


def timed_network(name: str, batch: int) -> Trace:
    """Return a network whose convolutions have the algorithms of cuDNN's era."""
    return network(name, batch, algorithms="cudnn")


def images_per_s(report: Report, batch: int) -> float:
    """Return the speed of training."""
    return batch * 1e9 / report.step_time_ns


def with_room(trace: Trace, machine: Machine, budget: int | None = None) -> Report:
    """Return the report of the whole stack in the largest of some budgets that the allocator keeps.

    Policies count exact bytes; a pool loses some to fragments. What it is short of is taken off the
    budget until it is short of nothing. Raises DoesNotFit if that does not come to an end.
    """
    policy, limit = find_policy(POLICY), budget or machine.device_nbytes
    for _ in range(_ATTEMPTS):
        report = simulate(trace, policy, machine, limit)
        short = report.reserved_peak_bytes - (budget or machine.device_nbytes)
        if short <= 0:
            return report
        limit -= short
    raise DoesNotFit(f"{trace.name} does not fit {machine.name} in {limit} bytes")


def time_shares(trace: Trace, machine: Machine) -> dict[str, float]:
    """Return the percentage of each layer type in the time of forward and backward (Fig. 8a)."""
    timing, parts = Timing(trace, machine), Counter[str]()
    for step in decide(find_policy(_PLAIN), trace, machine).schedule.instructions:
        if isinstance(step, Run | Rerun):
            parts[layer_type(trace, step.op)] += timing.run_ns(step.op, step.algorithm)
    return {kind: 100 * ns / parts.total() for kind, ns in parts.items()}


@cache
def k40c(allocator: str = "pool") -> Machine:
    """Return the K40c with the rates that ResNet50's figures give it, and an allocator."""
    compute, memory = _rates()
    figures = f"compute_rate={compute}FLOP/s,memory_rate={memory}B/s,allocator={allocator}"
    if allocator == "cudamalloc":
        figures += f",malloc_time={_call_ns()}ns,free_time={_call_ns()}ns"
    return find_machine(f"k40c:{figures}")


@cache
def titan_xp() -> Machine:
    """Return the TITAN Xp: the K40c's shares of the vendor's rates, times one factor."""
    plain, slow, fast = find_machine("k40c"), k40c(), find_machine("titan-xp")
    trace, policy = timed_network(NETWORK, 16), find_policy(POLICY)
    speed = printed("fig14")[NETWORK]["superneurons"][16]

    def machine(factor: float) -> Machine:
        compute = factor * fast.flops_per_s * slow.flops_per_s / plain.flops_per_s
        memory = factor * fast.bytes_per_s * slow.bytes_per_s / plain.bytes_per_s
        return find_machine(
            f"titan-xp:compute_rate={round(compute)}FLOP/s,memory_rate={round(memory)}B/s,"
            "allocator=pool"
        )

    factor = _solve(
        lambda factor: images_per_s(simulate(trace, policy, machine(factor)), 16), speed, 0.1, 10
    )
    return machine(factor)


def told(machine: Machine) -> str:
    """Return the calibrated figures of a machine in words, to three digits."""
    figures = [
        f"{machine.flops_per_s / 1e12:.2f} TFLOP/s",
        f"{machine.bytes_per_s / 1e9:.0f} GB/s",
    ]
    return " and ".join(figures)


def call_us() -> float:
    """Return what a cudaMalloc, and a cudaFree, takes in microseconds."""
    return _call_ns() / 1000


@cache
def _rates() -> tuple[int, int]:
    """Return arithmetic and memory rate: the share gives their ratio, the speed their size."""
    plain = find_machine("k40c")
    policy = find_policy(POLICY)
    share = printed("fig8a")[NETWORK]["conv"]
    speed = printed("table2")[NETWORK]["pool"]

    def machine(ratio: float, size: float) -> Machine:
        compute, memory = size * plain.flops_per_s, size * ratio * plain.bytes_per_s
        return find_machine(
            f"k40c:compute_rate={round(compute)}FLOP/s,memory_rate={round(memory)}B/s,"
            "allocator=pool"
        )

    whole, step = timed_network(NETWORK, 32), timed_network(NETWORK, 16)
    ratio = _solve(lambda x: time_shares(whole, machine(x, 1))["conv"], share, 0.02, 2)
    size = _solve(
        lambda x: images_per_s(simulate(step, policy, machine(ratio, x)), 16), speed, 0.02, 2
    )
    found = machine(ratio, size)
    return found.flops_per_s, found.bytes_per_s


@cache
def _call_ns() -> int:
    compute, memory = _rates()
    trace, policy = timed_network(NETWORK, 16), find_policy(POLICY)

    def speed(ns: float) -> float:
        machine = find_machine(
            f"k40c:compute_rate={compute}FLOP/s,memory_rate={memory}B/s,allocator=cudamalloc,"
            f"malloc_time={round(ns)}ns,free_time={round(ns)}ns"
        )
        return -images_per_s(simulate(trace, policy, machine), 16)

    return round(_solve(speed, -printed("table2")[NETWORK]["cuda"], 0, 5e6))


def _solve(rising: Callable[[float], float], wanted: float, low: float, high: float) -> float:
    """Return where a rising function comes to what is *wanted*, by halving."""
    for _ in range(_ROUNDS):
        middle = (low + high) / 2
        if rising(middle) < wanted:
            low = middle
        else:
            high = middle
    return (low + high) / 2
