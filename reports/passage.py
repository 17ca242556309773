"""How long a step took from place to place, as it was simulated and as it was measured."""

from msgspec import Struct


class Foreseen(Struct, frozen=True):
    """What the compute lane of a simulated step does from place to place, in ns.

    Number i of each list is of what stands at place i and of operation i; the last one is of the
    step's end. *work_ns* is the operation, *again_ns* what is computed again, *stall_ns* the wait
    for copies, and *host_ns* the wait for the host. All of them together are the step time.
    """

    work_ns: list[int]
    again_ns: list[int]
    stall_ns: list[int]
    host_ns: list[int]


class Stretch(Struct, frozen=True):
    """What was measured between two moments of a step, in ns: from place *begin* to place *end*,
    with the operations *begin* to *end* - 1; the last stretch ends with the step.

    *ns* is the device's time and *host_ns* the host's. *behind_ns* is how far the device was behind
    the host at its beginning, None if the host itself computes. Of the device's time *stall_ns*
    went to waits for copies and *again_ns* to what was computed again; of the host's *hooks_ns* to
    hooks, those two left out.
    """

    begin: int
    end: int
    ns: int
    host_ns: int
    behind_ns: int | None
    stall_ns: int
    again_ns: int
    hooks_ns: int
