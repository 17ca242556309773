"""The ledger: what is where, and how many bytes, as instructions go by.

The one room where bytes are added up. The weaver keeps one to decide with and the checker another
to prove with; a policy never adds. The ledger applies instructions and trusts them: whether they
are allowed is the checker's business.

Two totals are told apart. *Scheduled* bytes are the paper's: activations and their gradients.
*Device* bytes are everything: parameters, workspaces and inputs too. And two peaks: the *step
peak* is the maximum over the operations of the original step, taken right after an operation's
outputs are added; the *strict peak* is the maximum over all instructions, recomputations and
restores included.
"""

from collections.abc import Mapping

from ..traces.facts import Facts
from .instructions import Copy, Discard, Fetch, Free, Instruction, Rerun, Run


class Ledger:
    """Device and tier contents of one walk over a trace.

    *version* is, for each storage, the version on the device (-1: none); *copies* the same for
    each tier. *short* is by how many bytes *limit* was exceeded at worst, at operation *short_op*.
    Whoever decides may note in *full* which tiers had no room for what they were to take.
    """

    def __init__(self, facts: Facts, limit: int, tiers: Mapping[str, int]) -> None:
        self.facts = facts
        self.limit = limit
        self.capacity = dict(tiers)
        self.version = [0 if alive else -1 for alive in facts.alive_at_start]
        self.copies: dict[str, list[int]] = {tier: [-1] * facts.storage_count for tier in tiers}
        self.tier_nbytes = dict.fromkeys(tiers, 0)
        self.tier_peak_nbytes = dict.fromkeys(tiers, 0)
        self.device_nbytes = facts.start_nbytes
        self.device_peak_nbytes = self.device_nbytes
        self.scheduled_nbytes = 0
        self.tensors = 0
        self.strict_peak_nbytes = 0
        self.step_nbytes: list[int] = []
        self.step_tensors: list[int] = []
        self.copied_out_nbytes = 0
        self.copied_in_nbytes = 0
        self.rerun_ops = 0
        self.short = max(0, self.device_nbytes - limit)
        self.short_op = 0 if self.short and facts.op_count else -1
        self.full: set[str] = set()
        self._next_op = 0
        self._inside = facts.inside_nbytes

    def run(self, op: int, algorithm: int = 0) -> None:
        """Apply a Run: outputs appear, in-place targets get their next version; take a sample."""
        facts, version = self.facts, self.version
        for s in facts.fresh[op]:
            version[s] = 0
        for s in facts.overwrites[op]:
            version[s] += 1
        for s in facts.updates[op]:
            version[s] += 1
        self._next_op = op + 1
        self.scheduled_nbytes = scheduled = self.scheduled_nbytes + facts.fresh_scheduled_nbytes[op]
        self.tensors += facts.fresh_tensors[op]
        self.step_nbytes.append(scheduled)
        self.step_tensors.append(self.tensors)
        if scheduled > self.strict_peak_nbytes:
            self.strict_peak_nbytes = scheduled
        self.device_nbytes = device = self.device_nbytes + facts.fresh_nbytes[op]
        device += self.facts.inside(op, algorithm) if algorithm else self._inside[op]
        if device > self.device_peak_nbytes:
            self._device_peak(device, op)

    def rerun(self, op: int, algorithm: int = 0) -> None:
        """Apply a Rerun: outputs appear anew; nothing is updated in passing, no sample is taken."""
        facts, version = self.facts, self.version
        for s in facts.fresh[op]:
            version[s] = 0
        for s in facts.overwrites[op]:
            version[s] += 1
        self.rerun_ops += 1
        self.scheduled_nbytes += facts.fresh_scheduled_nbytes[op]
        self.tensors += facts.fresh_tensors[op]
        if self.scheduled_nbytes > self.strict_peak_nbytes:
            self.strict_peak_nbytes = self.scheduled_nbytes
        self.device_nbytes = device = self.device_nbytes + facts.fresh_nbytes[op]
        device += self.facts.inside(op, algorithm) if algorithm else self._inside[op]
        if device > self.device_peak_nbytes:
            self._device_peak(device, self._next_op)

    def free(self, s: int) -> None:
        """Apply a Free: the device copy goes."""
        facts = self.facts
        self.version[s] = -1
        self.device_nbytes -= facts.nbytes[s]
        if facts.scheduled[s]:
            self.scheduled_nbytes -= facts.nbytes[s]
            self.tensors -= 1

    def copy(self, s: int, tier: str) -> None:
        """Apply a Copy: the tier takes the present version."""
        self.copies[tier][s] = self.version[s]
        nbytes = self.facts.nbytes[s]
        self.copied_out_nbytes += nbytes
        self.tier_nbytes[tier] += nbytes
        if self.tier_nbytes[tier] > self.tier_peak_nbytes[tier]:
            self.tier_peak_nbytes[tier] = self.tier_nbytes[tier]

    def fetch(self, s: int, tier: str) -> None:
        """Apply a Fetch: the tier's version appears on the device."""
        facts = self.facts
        self.version[s] = self.copies[tier][s]
        nbytes = facts.nbytes[s]
        self.copied_in_nbytes += nbytes
        self.device_nbytes += nbytes
        if facts.scheduled[s]:
            self.scheduled_nbytes += nbytes
            self.tensors += 1
            if self.scheduled_nbytes > self.strict_peak_nbytes:
                self.strict_peak_nbytes = self.scheduled_nbytes
        if self.device_nbytes > self.device_peak_nbytes:
            self._device_peak(self.device_nbytes, self._next_op)

    def discard(self, s: int, tier: str) -> None:
        """Apply a Discard: the tier's copy goes."""
        self.copies[tier][s] = -1
        self.tier_nbytes[tier] -= self.facts.nbytes[s]

    def apply(self, step: Instruction) -> None:
        """Apply an instruction, whichever it is."""
        match step:
            case Run():
                self.run(step.op, step.algorithm)
            case Rerun():
                self.rerun(step.op, step.algorithm)
            case Free():
                self.free(step.storage)
            case Copy():
                self.copy(step.storage, step.tier)
            case Fetch():
                self.fetch(step.storage, step.tier)
            case Discard():
                self.discard(step.storage, step.tier)

    @property
    def step_peak_op(self) -> int:
        """The first operation with the highest sample; -1 in an empty step."""
        return self.step_nbytes.index(max(self.step_nbytes)) if self.step_nbytes else -1

    def _device_peak(self, nbytes: int, op: int) -> None:
        self.device_peak_nbytes = nbytes
        if nbytes - self.limit > self.short:
            last = self.facts.op_count - 1  # what comes after it is told of the last operation
            self.short, self.short_op = nbytes - self.limit, min(op, last)
