"""What is in a trace, in words."""

from collections import Counter

from ..notation import format_bytes
from ..traces import Trace


def summary(trace: Trace) -> str:
    """Return a few lines on a trace: operations, bytes by kind, and the least it can run in."""
    facts = trace.facts
    phases = Counter(op.phase for op in trace.operations)
    kinds: Counter[str] = Counter()
    for storage in trace.storages:
        kinds[storage.kind] += storage.nbytes
    least = "what is there at the start"
    if facts.floor_op >= 0:
        least = f"at {facts.op_names[facts.floor_op]!r}"
    return "\n".join(
        [
            f"{trace.name}: {facts.op_count} operations, {facts.storage_count} storages, "
            f"places: {trace.places}, times: {trace.times}",
            "operations: " + ", ".join(f"{count} {phase}" for phase, count in phases.items()),
            *(f"{kind}: {format_bytes(nbytes)}" for kind, nbytes in kinds.items()),
            f"no policy runs it in less than {format_bytes(facts.floor_nbytes)} ({least})",
            f"digest: {facts.digest}",
            *(f"{key}: {text}" for key, text in trace.notes.items()),
        ]
    )
