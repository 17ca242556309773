"""The checker: one walk over a schedule that proves it, or names the rule that it breaks.

The rules, by the names that messages give them:

order       each operation runs exactly once, in the order of the trace
inputs      what an operation needs is on the device, at the version that it needs
rerun       only what has run is rerun, only what is repeatable, and onto absent outputs
resident    only what is on the device is copied or freed; only what is absent is fetched
managed     only what policies may manage is moved, and only while the program lets go of it
program     what the program frees goes where the program frees it
place       policies act only where a driver can act
recipe      the sources of a dropped value were all packed before it is dropped
tier        a copy goes to a tier of the machine that has room, and comes from one that has it
limit       the device holds all of it, or the schedule says how much it is short
end         what is left at the end is what the step leaves behind; the tiers are empty
"""

import sys
from collections.abc import Iterable, Mapping
from typing import Never

from ..errors import IllegalSchedule, InvalidSchedule
from ..traces.facts import Facts
from ..traces.model import Trace
from .instructions import Copy, Discard, Fetch, Free, Instruction, Rerun, Run
from .ledger import Ledger
from .schedule import Schedule


def check(trace: Trace, schedule: Schedule) -> Ledger:
    """Prove *schedule* over *trace* and return the ledger of it: peaks and samples.

    Raises InvalidSchedule if it was made for another trace, IllegalSchedule if it breaks a rule.
    """
    facts = trace.facts
    if schedule.digest != facts.digest:
        raise InvalidSchedule(
            f"the schedule was made for trace {schedule.trace!r} (digest {schedule.digest}); "
            f"{trace.name!r} has digest {facts.digest}; make a new one"
        )
    proof = Proof(facts, schedule.limit_nbytes, schedule.tiers, schedule.short_nbytes)
    proof.feed(schedule.instructions)
    proof.finish()
    if schedule.short_op not in (-1, proof.ledger.short_op):  # -1: it does not say where
        raise IllegalSchedule(
            "limit",
            len(schedule.instructions),
            f"it claims to be short at operation {schedule.short_op}; "
            f"it is at {proof.ledger.short_op}",
        )
    return proof.ledger


class Proof:
    """A proof under way: instructions go in, in order; the first that breaks a rule raises.

    The device may be *allowed_short* bytes short of *limit*; None, by whatever it takes. *ledger*
    is that of the instructions so far, *next_op* the operation to run next.
    """

    def __init__(
        self, facts: Facts, limit: int, tiers: Mapping[str, int], allowed_short: int | None
    ) -> None:
        self.ledger = Ledger(facts, limit, tiers)
        self.next_op = 0
        self._facts = facts
        self._allowed_short = allowed_short
        # The version of each storage that the original step has written so far.
        self._current = list(self.ledger.version)
        self._program_freed: set[int] = set()
        self._position = 0

    def feed(self, instructions: Iterable[Instruction]) -> None:
        """Prove the next instructions and apply them. Raises IllegalSchedule."""
        facts, ledger, current = self._facts, self.ledger, self._current
        version, needs, fresh = ledger.version, facts.needs, facts.fresh
        overwrites, updates, op_count = facts.overwrites, facts.updates, facts.op_count
        program_frees = facts.program_frees
        run, free = ledger.run, ledger.free
        allowed = sys.maxsize if self._allowed_short is None else self._allowed_short
        free_anywhere = facts.trace.places == "everywhere"
        managed = facts.managed
        next_op, position = self.next_op, self._position - 1
        for position, step in enumerate(instructions, start=self._position):
            if type(step) is Run:
                op = step.op
                if op != next_op or op >= op_count:
                    self._fault_order(position, op, next_op)
                for s in needs[op]:
                    if version[s] != current[s]:
                        self._fault_input(position, op, s, current[s])
                if program_frees:
                    self._prove_program_frees(position, op)
                if step.algorithm:
                    self._prove_algorithm(position, op, step.algorithm)
                run(op, step.algorithm)
                for s in fresh[op]:
                    current[s] = 0
                for s in overwrites[op]:
                    current[s] += 1
                for s in updates[op]:
                    current[s] += 1
                next_op = op + 1
                if ledger.short > allowed:
                    self._fault_limit(position)
            elif type(step) is Free:
                s = step.storage
                if not 0 <= s < facts.storage_count:
                    self._fault("resident", position, f"there is no storage {s}")
                if version[s] < 0:
                    self._fault(
                        "resident", position, f"Free of {facts.names[s]!r}, which is absent"
                    )
                if not (free_anywhere and managed[s]):
                    self._prove_free(position, s, next_op)
                free(s)
            else:
                self.next_op = next_op
                self._prove_other(position, step)
                if ledger.short > allowed:
                    self._fault_limit(position)
        self.next_op, self._position = next_op, position + 1

    def _prove_other(self, position: int, step: object) -> None:
        """Prove the instructions that are rarer than Run and Free."""
        if isinstance(step, Rerun):
            self._prove_rerun(position, step.op)
            if step.algorithm:
                self._prove_algorithm(position, step.op, step.algorithm)
            self.ledger.rerun(step.op, step.algorithm)
        elif isinstance(step, Copy):
            self._prove_copy(position, step.storage, step.tier)
            self.ledger.copy(step.storage, step.tier)
        elif isinstance(step, Fetch):
            self._prove_fetch(position, step.storage, step.tier)
            self.ledger.fetch(step.storage, step.tier)
        elif isinstance(step, Discard):
            self._prove_held(position, "Discard", step.storage, step.tier)
            self.ledger.discard(step.storage, step.tier)
        else:
            self._fault("order", position, f"{step!r} is no instruction")

    def _prove_place(self, position: int, what: str) -> None:
        if not self._facts.is_place[self.next_op]:
            self._fault("place", position, f"{what} where no driver can act")

    def _prove_algorithm(self, position: int, op: int, algorithm: int) -> None:
        known = len(self._facts.trace.operations[op].algorithms)
        if not 0 <= algorithm <= known:
            name = self._facts.op_names[op]
            self._fault("order", position, f"{name!r} has no algorithm {algorithm} of {known + 1}")

    def _prove_rerun(self, position: int, op: int) -> None:
        facts, version = self._facts, self.ledger.version
        if not 0 <= op < self.next_op:
            self._fault("rerun", position, f"Rerun of operation {op}, which has not run yet")
        name = facts.op_names[op]
        self._prove_place(position, f"Rerun of {name!r}")
        if facts.trace.operations[op].recompute == "opaque":
            self._fault("rerun", position, f"Rerun of {name!r}, which is opaque")
        for s, needed in zip(facts.reads[op], facts.versions[op], strict=True):
            if version[s] != needed:
                self._fault_input(position, op, s, needed)
            if self.next_op < facts.death[s] and facts.unreachable(s, self.next_op):
                self._fault(
                    "recipe",
                    position,
                    f"{name!r} would read {facts.names[s]!r}, in the program's hands",
                )
        for s in facts.fresh[op]:
            if version[s] >= 0:
                self._fault(
                    "rerun", position, f"Rerun of {name!r} onto {facts.names[s]!r}, present"
                )

    def _prove_copy(self, position: int, s: int, tier: str) -> None:
        facts, ledger = self._facts, self.ledger
        self._prove_movable(position, "Copy", s, tier)
        name = facts.names[s]
        if ledger.version[s] < 0:
            self._fault("resident", position, f"Copy of {name!r}, which is absent")
        if self.next_op < facts.packed[s]:
            self._fault("managed", position, f"Copy of {name!r} before its last pack")
        if ledger.copies[tier][s] >= 0:
            self._fault(
                "tier", position, f"Copy of {name!r} to {tier}, which holds one: Discard it"
            )
        free = ledger.capacity[tier] - ledger.tier_nbytes[tier]
        if facts.nbytes[s] > free:
            self._fault(
                "tier",
                position,
                f"Copy of {name!r} ({facts.nbytes[s]} bytes) to {tier}, where {free} are free",
            )

    def _prove_fetch(self, position: int, s: int, tier: str) -> None:
        self._prove_held(position, "Fetch", s, tier)
        if self.ledger.version[s] >= 0:
            self._fault(
                "resident", position, f"Fetch of {self._facts.names[s]!r}, which is present"
            )

    def _prove_held(self, position: int, what: str, s: int, tier: str) -> None:
        self._prove_movable(position, what, s, tier)
        if self.ledger.copies[tier][s] < 0:
            name = self._facts.names[s]
            self._fault("tier", position, f"{what} of {name!r}: {tier} holds no copy of it")

    def _prove_movable(self, position: int, what: str, s: int, tier: str) -> None:
        facts = self._facts
        if not 0 <= s < facts.storage_count:
            self._fault("managed", position, f"{what}: there is no storage {s}")
        if not facts.managed[s]:
            self._fault("managed", position, f"{what} of {facts.names[s]!r}, the program's own")
        self._prove_place(position, f"{what} of {facts.names[s]!r}")
        if tier not in self.ledger.copies:
            there = ", ".join(self.ledger.copies) or "none"
            self._fault("tier", position, f"{what}: no tier {tier!r} here; there are: {there}")

    def _prove_free(self, position: int, s: int, place: int) -> None:
        """Prove a Free that is not simply one of a managed storage of an everywhere trace."""
        facts = self._facts
        name, death = facts.names[s], facts.death[s]
        if place == death and not facts.managed[s] and s not in self._program_freed:
            self._program_freed.add(s)  # the program's own
            return
        if place >= death:
            if place > death and not facts.is_place[place]:
                self._fault("place", position, f"Free of {name!r} where no driver can act")
            return
        if not facts.managed[s]:
            self._fault("managed", position, f"Free of {name!r}, which the program holds")
        if not facts.is_place[place]:
            self._fault("place", position, f"Free of {name!r} where no driver can act")
        if not facts.absent_from[s] <= place < facts.absent_until[s]:
            self._fault(
                "managed",
                position,
                f"Free of {name!r} at place {place}; it may be absent from place "
                f"{facts.absent_from[s]} to {facts.absent_until[s]}",
            )
        kept = any(copies[s] == self.ledger.version[s] for copies in self.ledger.copies.values())
        if not kept:
            late = facts.unpacked_source(s, self.ledger.version[s], place)
            if late >= 0:
                self._fault(
                    "recipe",
                    position,
                    f"Free of {name!r}, whose source {facts.names[late]!r} is not packed yet",
                )

    def _prove_program_frees(self, position: int, op: int) -> None:
        for s in self._facts.program_frees.get(op, ()):
            if s not in self._program_freed:
                name = self._facts.names[s]
                self._fault(
                    "program", position, f"{name!r} is still here where the program frees it"
                )

    def finish(self) -> None:
        """Prove that the step is over and leaves behind what it should. Raises IllegalSchedule."""
        facts, ledger, position, next_op = self._facts, self.ledger, self._position, self.next_op
        if next_op < facts.op_count:
            self._fault("order", position, f"it ends before {facts.op_names[next_op]!r} has run")
        if facts.program_frees:
            self._prove_program_frees(position, next_op)
        for s, name in enumerate(facts.names):
            if facts.alive_at_end[s] and ledger.version[s] != self._current[s]:
                self._fault("end", position, f"{name!r} is not there at the end, the step keeps it")
            if not facts.alive_at_end[s] and ledger.version[s] >= 0:
                self._fault("end", position, f"{name!r} is still on the device")
        for tier, copies in ledger.copies.items():
            if max(copies, default=-1) >= 0:
                s = next(s for s, version in enumerate(copies) if version >= 0)
                self._fault("end", position, f"{facts.names[s]!r} is still in {tier}")
        claimed = self._allowed_short
        if claimed is not None and ledger.short != claimed:
            self._fault(
                "limit", position, f"it claims to be {claimed} bytes short; it is {ledger.short}"
            )

    def _fault(self, rule: str, position: int, sentence: str) -> Never:
        raise IllegalSchedule(rule, position, sentence)

    def _fault_order(self, position: int, op: int, next_op: int) -> Never:
        names = self._facts.op_names
        wanted = repr(names[next_op]) if next_op < len(names) else "the end"
        found = repr(names[op]) if 0 <= op < len(names) else f"operation {op}"
        self._fault("order", position, f"Run of {found} where {wanted} is next")

    def _fault_input(self, position: int, op: int, s: int, needed: int) -> Never:
        found = self.ledger.version[s]
        there = "is absent" if found < 0 else f"is there at version {found}"
        self._fault(
            "inputs",
            position,
            f"{self._facts.op_names[op]!r} needs {self._facts.names[s]!r} at version {needed}, "
            f"which {there}",
        )

    def _fault_limit(self, position: int) -> Never:
        ledger = self.ledger
        op = self._facts.op_names[ledger.short_op]
        self._fault(
            "limit",
            position,
            f"{ledger.device_peak_nbytes} bytes on the device at {op!r}, {ledger.limit} allowed "
            f"and {self._allowed_short} more announced",
        )
