"""An observer that records a step for a timeline."""

from typing import Final

from ..reports import MemorySample, Span, Timeline
from ..schedules import Copy, Discard, Fetch, Free, Ledger, Rerun, Run, Schedule
from ..traces import Trace
from .device import Stall
from .lanes import Transfer

COMPUTE: Final = "compute"
LAUNCH: Final = "launch"


class Recorder:
    """Remembers the spans of all lanes and when each instruction was passed."""

    def __init__(self, trace: Trace) -> None:
        self._facts = trace.facts
        self._passed: list[tuple[int, int]] = []
        self._launches: list[Span] = []
        self._stalls: list[Span] = []
        self._transfers: list[tuple[str, int, Transfer]] = []

    def passed(self, position: int, start_ns: int, end_ns: int) -> None:
        """Remember when the compute lane passed an instruction."""
        self._passed.append((start_ns, end_ns))

    def stalled(self, stall: Stall, start_ns: int) -> None:
        """Remember a wait."""
        name = f"wait for {stall.reason} of {self._facts.names[stall.storage]}"
        self._stalls.append(Span(COMPUTE, name, start_ns, start_ns + stall.ns))

    def launched(self, op: int, start_ns: int, end_ns: int) -> None:
        """Remember a launch."""
        self._launches.append(Span(LAUNCH, self._facts.op_names[op], start_ns, end_ns))

    def issued(self, step: Copy | Fetch, start_ns: int, end_ns: int) -> None:
        """Remember what the host took for a transfer."""
        way = "copy" if isinstance(step, Copy) else "fetch"
        name = f"{way} {self._facts.names[step.storage]}"
        self._launches.append(Span(LAUNCH, name, start_ns, end_ns))

    def queued(self, lane: str, storage: int, transfer: Transfer) -> None:
        """Remember a transfer; it is read when the step is over."""
        self._transfers.append((lane, storage, transfer))

    def timeline(self, schedule: Schedule) -> Timeline:
        """Return the step that has been played, which was *schedule*."""
        names = self._facts.op_names
        spans = list(self._launches)
        for step, (start, end) in zip(schedule.instructions, self._passed, strict=True):
            if isinstance(step, Run):
                spans.append(Span(COMPUTE, names[step.op], start, end))
            elif isinstance(step, Rerun):
                spans.append(Span(COMPUTE, f"recompute {names[step.op]}", start, end))
        spans += self._stalls
        spans += [
            Span(lane, self._facts.names[s], transfer.start_ns, transfer.done_ns)
            for lane, s, transfer in self._transfers
        ]
        return Timeline(spans, self._memory(schedule))

    def _memory(self, schedule: Schedule) -> list[MemorySample]:
        ledger = Ledger(self._facts, schedule.limit_nbytes, schedule.tiers)
        samples = [MemorySample(0, ledger.device_nbytes, 0)]
        for step, (start, end) in zip(schedule.instructions, self._passed, strict=True):
            ledger.apply(step)
            if isinstance(step, Copy | Discard):
                continue
            inside = 0
            if isinstance(step, Run | Rerun):
                inside = self._facts.inside(step.op, step.algorithm)
            elif isinstance(step, Free):
                start = end  # after the fence
            device, scheduled = ledger.device_nbytes, ledger.scheduled_nbytes
            samples.append(MemorySample(start, device + inside, scheduled))
            if inside:
                samples.append(MemorySample(end, device, scheduled))
        return samples
