"""A walk through a DTR operator log that counts which names hold which storage.

Names are references. A storage is held by all the names of all the tensors in it: what a call
makes, a copy or an alias adds, and a release takes away. It dies with its last name; until then it
is there, used or not. A mutation computes a new storage that the name stands for afterwards. Bytes
appear when an operation is called, after all that was released before it is gone. (parse.py and
runtime/v2.py of simrd, with eager eviction.)
"""

from typing import Never

from msgspec import Struct

from ...errors import InvalidInput
from .dtr_log import (
    Alias,
    Annotate,
    Call,
    Constant,
    Copy,
    CopyFrom,
    Instruction,
    Log,
    Memory,
    Mutate,
    Release,
)


class Held(Struct):
    """A storage: *holders* names stand for it; *gone*, the place where the last went (-1: never).

    *step* makes it; an *opening* constant stands before the first operation.
    """

    name: str
    nbytes: int
    step: int
    constant: bool
    opening: bool
    backward: bool
    holders: int = 1
    gone: int = -1

    @property
    def lasting(self) -> bool:
        """Whether it is there from the start of the step to its end."""
        return self.opening and self.gone < 0


class Step(Struct):
    """A step of the walk: an operation, or a constant that appears; storages by number."""

    name: str
    reads: list[int]
    writes: list[int]
    ns: int
    backward: bool
    constant: bool = False


class Walk:
    """What happens in *log*, step by step. Raises InvalidInput, with the line, where it cannot.

    *started* and *marked* tell whether the log marks the start of the step and of backward, and
    *backward* whether it has one; without the mark the first operation called so begins it. (Beside
    the mark names do not count: DTR logs a forward pooling as `max_pool2d_backward`.) *unknown*
    counts the releases of what was there before the start. A *place* is the number of steps before.
    """

    def __init__(self, log: Log) -> None:
        self.storages: list[Held] = []
        self.steps: list[Step] = []
        self.backward = False
        self.unknown = 0
        self._log = log
        self._at = 0  # the instruction at hand
        self._names: dict[str, int] = {}  # to the number of the storage
        self._released: set[str] = set()
        self._taken: set[str] = set()  # names of storages
        self._began = False
        self.started = self._skip_to_start()
        self.marked = any(
            type(line) is Annotate and line.annotation == "BACKWARD"
            for line in log.instructions[self._at :]
        )
        self._follow()
        if not self._began:
            where = "after its START" if self.started else "in it"
            raise InvalidInput(
                f"{log.path}: there is no CALL and no MUTATE {where}, so nothing to simulate"
            )

    def _skip_to_start(self) -> bool:
        """Go behind the first START, which ends the preparations, if there is one."""
        for position, line in enumerate(self._log.instructions):
            if type(line) is Annotate and line.annotation == "START":
                self._at = position + 1
                return True
        return False

    def _follow(self) -> None:
        lines = self._log.instructions
        while self._at < len(lines):
            line = lines[self._at]
            if type(line) is Release:
                self._release(line.name)
            elif type(line) is Copy:
                s = self._number(line.src)
                self._define(line.dst, s)
                self.storages[s].holders += 1
            elif type(line) is Call:
                self._call(line)
            elif type(line) is Mutate:
                self._mutate(line)
            elif type(line) is Constant:
                self._constant(line)
            elif type(line) is CopyFrom:
                s, old = self._number(line.src), self._number(line.dst)
                self.storages[s].holders += 1
                self._names[line.dst] = s
                self._let_go(old)
            elif type(line) is Annotate:
                self.backward |= line.annotation == "BACKWARD"
            else:
                self._fault(f"this {type(line).__name__.upper()} follows no CONSTANT and no CALL")
            self._at += 1

    # -- instructions --------------------------------------------------------------------------

    def _constant(self, line: Constant) -> None:
        s = self._make(line.name, self._memory(line.name, self._at), constant=True)
        self._define(line.name, s)
        self.steps.append(Step("input", [], [s], 0, self.backward, constant=True))

    def _call(self, line: Call) -> None:
        self._begin(line.name)
        call = self._at
        args = [self._number(name) for name in line.args]
        made = []
        for name in line.result:
            nbytes = self._memory(name, call)
            alias = self._alias(name, call)
            if alias < 0:
                s = self._make(name, nbytes)
                made.append(s)
            elif alias < len(args):
                s = args[alias]
                self.storages[s].holders += 1
            else:
                self._fault(f"{name!r} is an alias of argument {alias}; there are {len(args)}")
            self._define(name, s)
        self.steps.append(Step(line.name, args, made, line.time, self.backward))

    def _mutate(self, line: Mutate) -> None:
        self._begin(line.name)
        args = [self._number(name) for name in line.args]
        for index in line.mutate:
            if index >= len(args):
                self._fault(f"it mutates argument {index}; there are {len(args)}")
        mutated = [line.args[index] for index in line.mutate]
        if len(set(mutated)) < len(mutated):
            self._fault(f"it mutates one argument twice: {', '.join(mutated)}")
        olds = [args[index] for index in line.mutate]
        made = [
            self._make(name, self.storages[old].nbytes)
            for name, old in zip(mutated, olds, strict=True)
        ]
        self.steps.append(Step(line.name, args, made, line.time, self.backward))
        for name, old, new in zip(mutated, olds, made, strict=True):
            self._names[name] = new
            self._let_go(old)

    def _release(self, name: str) -> None:
        s = self._names.pop(name, -1)
        if s >= 0:
            self._released.add(name)
            self._let_go(s)
        elif name in self._released or not self.started:
            self._number(name)  # says what is wrong
        else:
            self.unknown += 1

    def _begin(self, operation: str) -> None:
        self._began = True
        if not self.marked:
            self.backward |= "backward" in operation

    # -- names and storages --------------------------------------------------------------------

    def _memory(self, name: str, owner: int) -> int:
        line = self._next(name, owner)
        if type(line) is not Memory or line.name != name:
            self._fault(f"here the MEMORY of {name!r} is due, for line {self._log.line(owner)}")
        return line.memory

    def _alias(self, name: str, owner: int) -> int:
        line = self._next(name, owner)
        if type(line) is not Alias or line.name != name:
            self._fault(f"here the ALIAS of {name!r} is due, for line {self._log.line(owner)}")
        return line.alias

    def _next(self, name: str, owner: int) -> Instruction:
        """Go to the next line, which belongs to the instruction at *owner*."""
        self._at += 1
        if self._at == len(self._log.instructions):
            self._at = owner
            self._fault(f"the log is cut off: it ends before MEMORY and ALIAS of {name!r}")
        return self._log.instructions[self._at]

    def _number(self, name: str) -> int:
        """Return the storage that a name stands for."""
        s = self._names.get(name, -1)
        if s < 0:
            what = "has been released" if name in self._released else "is defined by no line before"
            self._fault(f"{name!r} {what}")
        return s

    def _define(self, name: str, s: int) -> None:
        if name in self._names:
            self._fault(f"{name!r} is defined already")
        self._names[name] = s

    def _make(self, name: str, nbytes: int, *, constant: bool = False) -> int:
        """Number a new storage that the next step makes; it is named for its first holder."""
        label, again = name, 1
        while label in self._taken:
            label = f"{name}#{again}"
            again += 1
        self._taken.add(label)
        opening = constant and not self._began
        held = Held(label, nbytes, len(self.steps), constant, opening, self.backward)
        self.storages.append(held)
        return len(self.storages) - 1

    def _let_go(self, s: int) -> None:
        held = self.storages[s]
        held.holders -= 1
        if not held.holders:
            held.gone = len(self.steps)

    def _fault(self, sentence: str) -> Never:
        self._log.fault(self._at, sentence)
