"""The walk's idea of time: when the lanes would reach this point, each copy alone on its link."""

from ..schedules import Timing
from ..traces import Facts


class Forecast:
    """A clock for each lane, moved on by the instructions that are placed.

    *now_ns* is when the compute lane reaches this place. Links are taken as full duplex and
    private; the simulator knows better where they are not.
    """

    def __init__(self, facts: Facts, timing: Timing) -> None:
        self._facts = facts
        self._timing = timing
        self._issue_ns = timing.machine.copy_issue_ns
        self.now_ns = 0
        self._launch_ns = 0
        self._place = 0
        self._lanes: dict[tuple[str, bool], int] = {}  # (tier, inward): when it is through
        self.copied_ns: dict[int, int] = {}  # when the last copy out of a storage ends
        self.fetched_ns: dict[int, int] = {}

    def run(self, op: int, algorithm: int = 0) -> None:
        """An operation runs: it waits for its launch and for what is fetched for it."""
        self._run(op, algorithm, self._facts.needs[op], self._facts.rewrites[op])
        self._place = op + 1
        if op in self._facts.waits:
            self._launch_ns = self.now_ns

    def rerun(self, op: int, algorithm: int = 0) -> None:
        """An operation is computed again: nothing is unpacked for it or updated in passing."""
        self._run(op, algorithm, self._facts.reads[op], self._facts.overwrites[op])

    def _run(
        self, op: int, algorithm: int, needs: tuple[int, ...], rewrites: tuple[int, ...]
    ) -> None:
        timing = self._timing
        host_ns, count = timing.host_ns[op], timing.launches.get(op, 1)
        now = self._launch_ns + host_ns // count
        self._launch_ns += host_ns
        if now < self.now_ns:
            now = self.now_ns
        if self.fetched_ns:
            for s in needs:
                if s in self.fetched_ns:
                    now = max(now, self.fetched_ns.pop(s))
        for s in rewrites:
            now = max(now, self.copied_ns.get(s, 0))
        ns = timing.run_ns(op, algorithm) if algorithm else timing.device_ns[op]
        self.now_ns = max(now + ns, self._launch_ns + ns // count)

    def copy(self, s: int, tier: str) -> None:
        """A copy to a tier is queued; it waits for a fetch in flight of what it sends."""
        start = max(self._lanes.get((tier, False), 0), self._issued(), self.fetched_ns.get(s, 0))
        end = start + self._timing.copy_ns(self._facts.nbytes[s], tier)
        self._lanes[tier, False] = end
        self.copied_ns[s] = max(end, self.copied_ns.get(s, 0))

    def fetch(self, s: int, tier: str) -> None:
        """A fetch from a tier is queued."""
        start = max(self._lanes.get((tier, True), 0), self._issued())
        end = start + self._timing.fetch_ns(self._facts.nbytes[s], tier)
        self._lanes[tier, True] = self.fetched_ns[s] = end

    def _issued(self) -> int:
        """Let the host issue a transfer; return when both it and the compute lane are here."""
        self._launch_ns += self._issue_ns
        return max(self._launch_ns, self.now_ns)

    def discard(self, s: int) -> None:
        """A tier's copy is given up: the compute lane waits for what is in flight, as for a free.

        With several tiers that is a little too long: one storage's transfers are told as one.
        """
        self.free(s)

    def free(self, s: int) -> None:
        """A device copy is given up: the compute lane waits for what is in flight, but not for the
        copy out of what has died, which is an idle one and will not be made."""
        alive = self._place < self._facts.death[s]
        if alive and s in self.copied_ns and self.copied_ns[s] > self.now_ns:
            self.now_ns = self.copied_ns[s]
        if s in self.fetched_ns:
            self.now_ns = max(self.now_ns, self.fetched_ns.pop(s))
