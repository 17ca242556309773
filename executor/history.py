"""What an operation asked the device's allocator for, in order, and what it gave back."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final, NamedTuple

import torch

from ..traces import Operation
from ..traces.allocations import fault_in_order
from .logged import Logged
from .private import memory_history, memory_history_runs, record_memory_history


class Asked(NamedTuple):
    """One event of the allocator: bytes given out at an address, or taken back."""

    taken: bool
    address: int
    nbytes: int


class History:
    """The allocator's events during a step, numbered as its own counters count them."""

    def __init__(self, device: torch.device) -> None:
        self._device: Final = device
        self._first = 0
        self._events: list[Asked] = []

    @contextmanager
    def recorded(self, counted: int) -> Iterator[None]:
        """Record the block's events; *counted* is how many there have been before.

        If the program has the history recorded for itself, it is left alone, and none is found.
        """
        if memory_history_runs():
            yield
            return
        index = self._device.index
        record_memory_history(True)
        try:
            before = len(memory_history(index))
            yield
            found = memory_history(index)[before:]
        finally:
            record_memory_history(False)
        self._first = counted
        self._events = [
            Asked(event["action"] == "alloc", event["addr"], event["size"])
            for event in found
            if event["action"] in ("alloc", "free_completed")
        ]

    def settle(self, op: Logged) -> None:
        """Give an operation the order of its allocations, and put its results into that order.

        Nothing changes where the order is not known, or the usual one: results, then the rest.
        """
        first, last = op.counted[0] - self._first, op.counted[1] - self._first
        if first < 0 or last > len(self._events):
            return
        places = {life.data: k for k, life in enumerate(op.fresh) if life.nbytes}
        order = allocation_order(self._events[first:last], places)
        if order is None:
            return
        entries, results = order
        fresh = [op.fresh[k] for k in results]
        said = Operation(
            name="",
            kind="",
            phase="forward",
            transient_nbytes=op.inside_nbytes,
            allocations=entries,
        )
        if fault_in_order(said, [life.nbytes for life in fresh]) is not None:
            return  # an argument's bytes went meanwhile
        op.fresh[:] = fresh + [life for life in op.fresh if not life.nbytes]
        count = len(fresh)
        usual = ((0,) * count, (*(0,) * count, op.inside_nbytes, -1))
        op.allocations = () if entries in usual else entries


def allocation_order(
    events: Sequence[Asked], results: dict[int, int]
) -> tuple[tuple[int, ...], list[int]] | None:
    """Return the events of one operation as a trace spells them, and its results in that order.

    *results* numbers them by address. None if something is left that is no result, or if a result
    was not asked for: somebody else's memory is among them.
    """
    open_at: dict[int, int] = {}  # which entry has an address
    entries: list[int] = []
    given_back: dict[int, int] = {}  # the place of a temporary's end, by that of its begin
    for event in events:
        if event.taken:
            open_at[event.address] = len(entries)
            entries.append(event.nbytes)
        elif event.address in open_at:
            given_back[len(entries)] = open_at.pop(event.address)
            entries.append(0)
    if open_at.keys() != results.keys():
        return None
    made = {k: results[address] for address, k in open_at.items()}
    number: dict[int, int] = {}  # of the temporaries, from 1, by their entry
    spelled: list[int] = []
    for k, nbytes in enumerate(entries):
        if k in given_back:
            spelled.append(-number[given_back[k]])
        elif k in made:
            spelled.append(0)
        else:
            number[k] = len(number) + 1
            spelled.append(nbytes)
    return tuple(spelled), [made[k] for k in sorted(made)]
