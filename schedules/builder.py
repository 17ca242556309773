"""A builder for planners: a schedule that is legal at every instruction, or tells why not."""

from ..machines import Machine
from ..traces import Trace
from .checker import Proof
from .instructions import Copy, Discard, Fetch, Free, Instruction, Rerun, Run
from .ledger import Ledger
from .schedule import Schedule


class Builder:
    """A schedule of *trace* for *machine* under construction, in *budget* bytes (None: all).

    Each method appends one instruction, proved as it comes; one that breaks a rule raises
    IllegalSchedule and leaves the builder as it was. Operations and storages go by their numbers:
    `trace.facts` says what they are. *ledger* tells what is where, *next_op* what runs next.
    """

    def __init__(self, trace: Trace, machine: Machine, budget: int | None = None) -> None:
        self._trace = trace
        self._machine = machine
        self._budget = budget
        self._instructions: list[Instruction] = []
        limit = machine.device_nbytes if budget is None else budget
        self._proof = Proof(trace.facts, limit, machine.capacities, allowed_short=None)
        self._free_for_program()

    @property
    def ledger(self) -> Ledger:
        """What is where, and how many bytes, after the instructions so far."""
        return self._proof.ledger

    @property
    def next_op(self) -> int:
        """The operation that runs next; the number of operations when all have run."""
        return self._proof.next_op

    def run(self, algorithm: int = 0) -> None:
        """Run the next operation; what the program itself frees after it is freed."""
        self._append(Run(self.next_op, algorithm))
        self._free_for_program()

    def rerun(self, op: int, algorithm: int = 0) -> None:
        """Compute an operation again."""
        self._append(Rerun(op, algorithm))

    def copy(self, storage: int, tier: str = "host") -> None:
        """Start a copy to a tier."""
        self._append(Copy(storage, tier))

    def free(self, storage: int) -> None:
        """Give up a device copy."""
        self._append(Free(storage))

    def fetch(self, storage: int, tier: str = "host") -> None:
        """Start copying back from a tier."""
        self._append(Fetch(storage, tier))

    def discard(self, storage: int, tier: str = "host") -> None:
        """Give up a tier's copy."""
        self._append(Discard(storage, tier))

    def schedule(self, policy: str) -> Schedule:
        """End the step, freeing and discarding what is left, and return it under that label."""
        facts, ledger = self._trace.facts, self.ledger
        if self.next_op < facts.op_count:
            self._proof.finish()  # tells what is missing
        for s in range(facts.storage_count):
            if ledger.version[s] >= 0 and not facts.alive_at_end[s]:
                self.free(s)
            for tier, copies in ledger.copies.items():
                if copies[s] >= 0:
                    self.discard(s, tier)
        self._proof.finish()
        return Schedule.of(
            self._trace, self._machine, self._budget, policy, self._instructions, ledger
        )

    def _append(self, instruction: Instruction) -> None:
        self._proof.feed((instruction,))
        self._instructions.append(instruction)

    def _free_for_program(self) -> None:
        for s in self._trace.facts.program_frees.get(self.next_op, ()):
            self._append(Free(s))
