"""Schedule files: JSON with names, so that two of them can be read and compared.

    {"format": "superneurons-schedule/1", "trace": ..., "digest": ..., "policy": ...,
     "limit_nbytes": ..., "budget_nbytes": ..., "tiers": {...}, "short_nbytes": 0, "short_op": null,
     "instructions": [["run", "conv1"], ["copy", "conv1.out", "host"], ["free", "conv1.out"], ...]}

A run or rerun by another than the first algorithm carries its number, `["run", "conv1", 2]`.
"""

from pathlib import Path
from typing import Final

from msgspec import Struct

from ..errors import InvalidSchedule
from ..notation.files import decode, read_data, write_data
from ..traces import Facts, Trace
from .instructions import Copy, Discard, Fetch, Free, Instruction, Rerun, Run
from .schedule import Schedule

FORMAT: Final = "superneurons-schedule/1"
_MOVES: Final[dict[str, type[Copy | Fetch | Discard]]] = {
    "copy": Copy,
    "fetch": Fetch,
    "discard": Discard,
}


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    trace: str
    digest: str
    policy: str
    limit_nbytes: int
    budget_nbytes: int | None
    tiers: dict[str, int]
    short_nbytes: int
    short_op: str | None
    instructions: list[tuple[str | int, ...]]
    full_tiers: tuple[str, ...] = ()


def write_schedule(schedule: Schedule, trace: Trace, path: Path | str) -> None:
    """Write *schedule* of *trace* to the file at *path*, whole or not at all."""
    facts = trace.facts
    short_op = facts.op_names[schedule.short_op] if schedule.short_op >= 0 else None
    write_data(
        Path(path),
        FORMAT,
        {
            "trace": schedule.trace,
            "digest": schedule.digest,
            "policy": schedule.policy,
            "limit_nbytes": schedule.limit_nbytes,
            "budget_nbytes": schedule.budget_nbytes,
            "tiers": dict(schedule.tiers),
            "short_nbytes": schedule.short_nbytes,
            "short_op": short_op,
            "instructions": [spell(step, facts) for step in schedule.instructions],
        }
        | ({"full_tiers": schedule.full_tiers} if schedule.full_tiers else {}),
    )


def read_schedule(path: Path | str, trace: Trace) -> Schedule:
    """Return the schedule in the file at *path*, made for *trace*; `check` then proves it.

    Raises InvalidInput if it cannot be read, InvalidSchedule if it is of another trace.
    """
    path = Path(path)
    content = decode(read_data(path, FORMAT, "schedule file"), _File, path)
    facts = trace.facts
    if content.digest != facts.digest:
        raise InvalidSchedule(
            f"{path}: was made for trace {content.trace!r} (digest {content.digest}); "
            f"{trace.name!r} has digest {facts.digest}; make a new schedule"
        )
    steps = [
        _read(step, facts, f"{path}: instructions[{i}]")
        for i, step in enumerate(content.instructions)
    ]
    short_op = -1
    if content.short_op is not None:
        short_op = _find(content.short_op, facts.op_index, f"{path}: short_op", "operation")
    return Schedule(
        trace=content.trace,
        digest=content.digest,
        policy=content.policy,
        limit_nbytes=content.limit_nbytes,
        budget_nbytes=content.budget_nbytes,
        tiers=content.tiers,
        instructions=steps,
        short_nbytes=content.short_nbytes,
        short_op=short_op,
        full_tiers=content.full_tiers,
    )


def spell(step: Instruction, facts: Facts) -> tuple[str | int, ...]:
    """Return an instruction with names in place of numbers."""
    if isinstance(step, Run | Rerun):
        verb, name = type(step).__name__.lower(), facts.op_names[step.op]
        return (verb, name, step.algorithm) if step.algorithm else (verb, name)
    if isinstance(step, Free):
        return ("free", facts.names[step.storage])
    return (type(step).__name__.lower(), facts.names[step.storage], step.tier)


def _read(spelled: tuple[str | int, ...], facts: Facts, where: str) -> Instruction:
    match spelled:
        case [("run" | "rerun") as verb, str(name), *rest] if len(rest) < 2:
            kind = Run if verb == "run" else Rerun
            op = _find(name, facts.op_index, where, "operation")
            match rest:
                case []:
                    return kind(op)
                case [int(algorithm)]:
                    return kind(op, algorithm)
        case ["free", str(name)]:
            return Free(_find(name, facts.storage_index, where, "storage"))
        case [("copy" | "fetch" | "discard") as verb, str(name), str(tier)]:
            return _MOVES[str(verb)](_find(name, facts.storage_index, where, "storage"), tier)
    raise InvalidSchedule(
        f"{where}: {list(spelled)!r} is no instruction; they are run, rerun, copy, free, fetch, "
        "discard, with a name and, for copies, a tier"
    )


def _find(name: str, index: dict[str, int], where: str, what: str) -> int:
    if name not in index:
        raise InvalidSchedule(f"{where}: the trace has no {what} {name!r}")
    return index[name]
