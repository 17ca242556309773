"""In which order an operation asks for memory: results, temporaries, and what it gives back."""

from collections.abc import Sequence

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
