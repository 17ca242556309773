"""What an executed step did, written by what did it, and how it compares with its schedule."""

from msgspec import Struct

from .actions import What
from .plan import Plan

Event = tuple[int, str, int]
"""One thing that happened, to which storage: at which hook, what, and the storage.

What is as in a plan, or "gone" and "there" for what a look has found, "late" for a fetch and
"rebuilt" for a computation on demand that should have come before, "kept" for want of room in a
tier, and "unready" for what stayed because it could not be computed again.
"""


class StorageReport(Struct, frozen=True, kw_only=True):
    """What a schedule wanted for one storage, and what became of it.

    *holders* tells how many others still had the bytes where they should have gone, 0 if they went;
    and *held_by* who they were, if the step was audited.
    """

    name: str
    nbytes: int
    planned: list[str]
    done: list[str]
    copied: bool
    freed: bool
    holders: int
    held_by: list[str] = []


class StepReport(Struct, frozen=True, kw_only=True):
    """One step under the executor. *mode* is "safe", "recorded", "executed" or "kept", and *why*
    says why a step kept everything.

    *planned* and *done* count what was due and what happened, by its name; *replays* are the
    operations that were run again by the schedule, *late_replays* the storages that were computed
    again on demand. *stall_ns* is how long the computation waited for copies, *out_ns* and *in_ns*
    how long copies took each way: 0 where that is not measured.
    """

    step: int
    mode: str
    why: str = ""
    planned: dict[str, int] = {}
    done: dict[str, int] = {}
    copied_out_nbytes: int = 0
    copied_in_nbytes: int = 0
    late_fetches: int = 0
    replays: int = 0
    late_replays: int = 0
    not_freed_nbytes: int = 0
    stall_ns: int = 0
    out_ns: int = 0
    in_ns: int = 0
    storages: list[StorageReport] = []


class Journal:
    """The events of one step by *plan*, as they happen."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.events: list[Event] = []
        self.holders: dict[int, int] = {}
        self.held_by: dict[int, list[str]] = {}  # known only of audited steps
        self.kept = 0
        self._step = 0
        self._why = ""
        self._stall_ns = 0
        self._copied_ns = 0, 0

    def write(self, hook: int, what: str, storage: int) -> None:
        """Write down what has happened."""
        self.events.append((hook, what, storage))
        if what == "kept":
            self.kept += 1

    def end(self, step: int, why: str, stall_ns: int, copied_ns: tuple[int, int]) -> None:
        """End it: *why* everything was kept from some hook on, "" if it was not."""
        self._step, self._why = step, why
        self._stall_ns, self._copied_ns = stall_ns, copied_ns

    def report(self) -> StepReport:
        """Return what the step did beside what it was to do."""
        facts = self.plan.trace.facts
        planned: dict[int, list[str]] = {}
        for actions in (*self.plan.due, self.plan.at_end):
            for action in actions:
                if action.what is not What.LOOK:
                    for s in action.storages:
                        planned.setdefault(s, []).append(action.what.value)
        done: dict[int, list[str]] = {}
        counts: dict[str, int] = {}
        for _, did, s in self.events:
            done.setdefault(s, []).append(did)
            counts[did] = counts.get(did, 0) + 1
        out, back, stuck = [
            sum(facts.nbytes[s] for _, did, s in self.events if did in kinds)
            for kinds in (("copy",), ("fetch", "late"), ("there",))
        ]
        return StepReport(
            step=self._step,
            mode="kept" if self._why else "executed",
            why=self._why,
            planned={what.value: n for what, n in self.plan.planned.items() if n},
            done=counts,
            copied_out_nbytes=out,
            copied_in_nbytes=back,
            late_fetches=counts.get("late", 0),
            replays=counts.get("rerun", 0),
            late_replays=counts.get("rebuilt", 0),
            not_freed_nbytes=stuck,
            stall_ns=self._stall_ns,
            out_ns=self._copied_ns[0],
            in_ns=self._copied_ns[1],
            storages=[
                StorageReport(
                    name=facts.names[s],
                    nbytes=facts.nbytes[s],
                    planned=wanted,
                    done=done.get(s, []),
                    copied="copy" in done.get(s, ()),
                    freed="gone" in done.get(s, ()),
                    holders=self.holders.get(s, 0),
                    held_by=self.held_by.get(s, []),
                )
                for s, wanted in planned.items()
            ],
        )
