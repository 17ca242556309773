"""In which order an operation asks for memory: results, temporaries, and what it gives back."""

from collections.abc import Sequence

from msgspec.structs import replace

from .model import Operation


def fault_in_order(op: Operation, results: Sequence[int]) -> str | None:
    """Return what is wrong with an operation's *allocations*, None if nothing is.

    *results* are the sizes of the storages that it makes. The order must be of just these, give
    back each temporary once, and take inside what the operation says it takes.
    """
    left = [nbytes for nbytes in results if nbytes][::-1]
    total = sum(left)
    there = peak = 0
    temporaries: list[int] = []
    for entry in op.allocations:
        if entry > 0:
            temporaries.append(entry)
            there += entry
        elif entry == 0:
            if not left:
                return f"asks for more results than the {len(results)} that it makes"
            there += left.pop()
        else:
            k = -entry
            if k > len(temporaries) or not temporaries[k - 1]:
                return f"gives back its temporary {k}, which is not there"
            there -= temporaries[k - 1]
            temporaries[k - 1] = 0
        peak = max(peak, there)
    if left:
        return f"asks for {len(left)} fewer results than it makes"
    if any(temporaries):
        return "does not give back all its temporaries"
    inside = op.workspace_nbytes + op.transient_nbytes
    if peak - total != inside:
        return f"takes {peak - total} bytes inside in that order, but says {inside}"
    return None


def with_less(op: Operation, results: Sequence[int], nbytes: int) -> Operation:
    """Return an operation with workspaces so small that it takes at most *nbytes* inside, or with
    none, if what it holds for longer is more. *results* are the sizes of the storages it makes.

    A workspace is what is given back at once: each becomes as small as it must where it stands.
    """
    if not op.allocations:
        room = max(0, nbytes - op.transient_nbytes)
        return replace(op, workspace_nbytes=min(op.workspace_nbytes, room))
    left = [n for n in results if n][::-1]
    there = -sum(left)  # beyond the results
    inside = 0
    order: list[int] = []
    taken: list[tuple[int, int]] = []  # by old number: bytes, new number
    kept = 0
    for k, entry in enumerate(op.allocations):
        if entry > 0:
            if op.allocations[k + 1] == -len(taken) - 1:
                entry = min(entry, max(0, nbytes - there))
            kept += entry > 0
            taken.append((entry, kept))
            there += entry
            if entry:
                order.append(entry)
        elif entry:
            given_back, number = taken[-entry - 1]
            there -= given_back
            if given_back:
                order.append(-number)
        else:
            there += left.pop()
            order.append(0)
        inside = max(inside, there)
    transient = min(op.transient_nbytes, inside)
    return replace(
        op,
        workspace_nbytes=inside - transient,
        transient_nbytes=transient,
        allocations=tuple(order),
    )
