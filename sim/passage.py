"""An observer that adds up what the compute lane does from place to place."""

from ..machines import Machine
from ..reports import Foreseen
from ..schedules import Copy, Fetch, Rerun, Run, Schedule, Timing
from ..traces import Trace
from .device import Stall
from .lanes import Transfer
from .simulate import simulate_schedule


class Passage:
    """Remembers when each instruction was passed, and what was waited for."""

    def __init__(self, trace: Trace, machine: Machine) -> None:
        self._timing = Timing(trace, machine)
        self._count = len(trace.operations)
        self._ends_ns: list[int] = []
        self._stalls_ns: dict[int, int] = {}  # by position

    def passed(self, position: int, start_ns: int, end_ns: int) -> None:
        """Remember when the compute lane had passed an instruction."""
        self._ends_ns.append(end_ns)

    def stalled(self, stall: Stall, start_ns: int) -> None:
        """Remember a wait."""
        self._stalls_ns[stall.position] = self._stalls_ns.get(stall.position, 0) + stall.ns

    def launched(self, op: int, start_ns: int, end_ns: int) -> None:
        """Nothing to do: a launch that is late shows in when the operation has passed."""

    def issued(self, step: Copy | Fetch, start_ns: int, end_ns: int) -> None:
        """Nothing to do, as with a launch."""

    def queued(self, lane: str, storage: int, transfer: Transfer) -> None:
        """Nothing to do: who waits for it stalls."""

    def foreseen(self, schedule: Schedule, step_time_ns: int) -> Foreseen:
        """Return the step that has been played, which was *schedule* and took so long."""
        work, again, stalls, host = ([0] * (self._count + 1) for _ in range(4))
        place = now = 0
        for position, (step, end) in enumerate(
            zip(schedule.instructions, self._ends_ns, strict=True)
        ):
            stall, busy = self._stalls_ns.get(position, 0), 0
            if isinstance(step, Run | Rerun):
                busy = self._timing.run_ns(step.op, step.algorithm)
                (work if isinstance(step, Run) else again)[place] += busy
            stalls[place] += stall
            host[place] += end - now - stall - busy
            now = end
            place += isinstance(step, Run)
        stalls[place] += step_time_ns - now  # the step ends with what is in flight
        return Foreseen(work, again, stalls, host)


def foresee(trace: Trace, schedule: Schedule, machine: Machine) -> Foreseen:
    """Return where the time of a schedule goes on a machine, place by place.

    Raises as `simulate_schedule` does.
    """
    passage = Passage(trace, machine)
    report = simulate_schedule(trace, schedule, machine, passage)
    return passage.foreseen(schedule, report.step_time_ns)
