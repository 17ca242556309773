"""Which operations of a recorded step may run again, and from what.

A driver that runs one again has hold of what autograd has saved in that step, of what it has made
itself, and of parameters and buffers, by weak references. Everything else that an operation may
have read is out of its reach: a batch, say, of which the next one has taken the place.
"""

import weakref
from collections.abc import Mapping, Sequence

import msgspec
import torch

from ..traces import Trace
from .calls import Call, Result

Lasting = Mapping[int, Sequence[weakref.ref[torch.Tensor]]]
"""By storage of a trace, the parameters and buffers that are on it."""


class Repeatable:
    """The operations of a recorded step that may run again.

    *calls* are by operation, *index* gives the storage of a life, *lasting* are parameters and
    buffers, *silent* those of them whose versions do not tell that an optimizer has written them,
    *touched* the storages that operators of other libraries have had in their hands, and *saves*
    are storages with the version that was saved, all on *device*.

    *trace* is the trace in which all other operations are opaque. *saved* is the version at which
    a storage is saved, for those that are saved at their last version only.
    """

    def __init__(
        self,
        trace: Trace,
        calls: Mapping[int, Call],
        index: Mapping[int, int],
        lasting: Lasting,
        silent: set[int],
        touched: set[int],
        saves: Sequence[tuple[int, int]],
        device: torch.device,
    ) -> None:
        self.calls = calls
        self.device = device
        self.index = index
        self.lasting = lasting
        self.silent = silent
        self._touched = touched
        self._facts = facts = trace.facts
        versions: dict[int, set[int]] = {}
        for s, version in saves:
            if not facts.alive_at_start[s]:
                versions.setdefault(s, set()).add(version)
        # What is written after it was saved, unseen by autograd, is no source either.
        self.saved = {
            s: min(found)
            for s, found in versions.items()
            if len(found) == 1 and facts.overwriter(s, min(found)) > facts.op_count
        }
        self._unclear = versions.keys() - self.saved.keys()
        # Its dropout has a state that follows the GPU's generator: nobody else may set that one.
        self._draws_beside = any(
            op.kind == "rnn" and (call := calls.get(i)) is not None and call.random
            for i, op in enumerate(trace.operations)
        )
        self.trace = msgspec.structs.replace(
            trace,
            operations=tuple(
                op
                if op.recompute == "opaque" or self._may_run_again(i)
                else msgspec.structs.replace(op, recompute="opaque")
                for i, op in enumerate(trace.operations)
            ),
        )

    def _may_run_again(self, i: int) -> bool:
        facts = self._facts
        call = self.calls.get(i)
        if call is None or call.why or facts.trace.operations[i].phase != "forward":
            return False
        if self._draws_beside and facts.trace.operations[i].recompute == "random":
            return False
        for s in facts.reads[i] + facts.fresh[i]:
            if s in self._touched or s in self._unclear:
                return False
            if not facts.alive_at_start[s] and self.made_by(s) is None:
                return False
        if any(facts.alive_at_start[s] for s in facts.overwrites[i]):
            return False
        there = dict(zip(facts.reads[i], facts.versions[i], strict=True))
        return all(
            s in self.lasting and version == 0
            for s, version in there.items()
            if facts.alive_at_start[s]
        ) and {self.index[argument.life.number] for argument in call.tensors} == set(there)

    def made_by(self, s: int) -> tuple[int, Result] | None:
        """Return the position in forward at which a storage is made, and where it is among the
        results; None if nobody sees that."""
        facts = self._facts
        call = None if facts.alive_at_start[s] else self.calls.get(facts.writers[s][0])
        if call is None:
            return None
        found = (each for each in call.results if self.index[each.life.number] == s)
        result = next(found, None)
        return None if result is None else (call.position, result)
