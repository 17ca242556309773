"""What a training step does to memory when nobody looks into it: an oracle for recorded traces.

torch's profiler tells every allocation and every free of the CPU, in order, with the operators
around them; no dispatch mode is active. A step is watched twice: bare, and with saved-tensor hooks
that keep what they are given and leave marks. Left out is what a trace does not hold:

- what an operator takes and gives back inside itself;
- what the host takes outside of operators: Python numbers on their way into one, and the state of
  a generator that was asked for it. On a GPU these stay in the host's memory.
"""

import gc
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile, record_function

from superneurons.machines import find_machine
from superneurons.policies import decide, find_policy
from superneurons.schedules import Free, Run
from superneurons.traces import Trace

Step = Callable[[], object]
MACHINE = find_machine("h200")
MARK = "oracle:"
GENERATOR_NBYTES = torch.get_rng_state().nbytes
NUMBER_NBYTES = (1, 8)
LAZY = {f"aten::{name}" for name in ("add_", "mul", "div", "exp", "sin", "cos", "sgn")}
"""Operators that never clone, but are given conjugates and negatives that are not computed yet:
then torch clones these in front of them, as an operator of its own."""


class Event(NamedTuple):
    """Bytes that come (`+`) or go (`-`), or a mark; *who* is what did it, for messages."""

    what: str
    nbytes: int
    who: str


class Swing(NamedTuple):
    """What comes, or goes, in a row: the order inside is nobody's concern."""

    what: str
    sizes: tuple[int, ...]
    who: tuple[str, ...]


class Hold(NamedTuple):
    """A saved tensor: its first byte and span, how many allocations came before each hook, and the
    node that asked for it.

    *at_pack* and *at_unpack* are the bytes alive at the hooks since the start of the step, as the
    least and the most that they can be.
    """

    offset: int
    nbytes: int
    packed: int
    unpacked: int
    node: str
    at_pack: tuple[int, int]
    at_unpack: tuple[int, int]


class Watched(NamedTuple):
    """A plain step: what came and went, bare and under hooks, and what was saved."""

    bare: list[Event]
    hooked: list[Event]
    holds: list[Hold]
    temporaries: int


# -- the plain step --------------------------------------------------------------------------------


def watch(build: Callable[[], Step], before: int = 2) -> Watched:
    """Build a step, run it *before* times, and watch the next run and the one after that.

    The build is profiled, too: a free is told only of what was seen to be allocated.
    """
    torch.manual_seed(0)
    hooks = _Hooks()
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()  # what dies does so at its place, not when the collector comes by
    try:
        with profile(
            activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True
        ) as profiler:
            step = build()
            for _ in range(before):
                step()
            gc.collect()
            with _marked("bare"):
                step()
            gc.collect()
            with _marked("hooked"), saved_tensors_hooks(hooks.pack, hooks.unpack):
                step()
        tree = profiler.profiler.kineto_results.experimental_event_tree()
        found = sorted(_flatten(tree, None, False), key=lambda each: each.time_ns)
        skipped = {storage._cdata for storage in _statistics(step)}
    finally:
        if was_enabled:
            gc.enable()
    regions, temporaries = _regions(found)
    hooked = regions["hooked"]
    return Watched(
        bare=[event for event in regions["bare"] if event.what in "+-"],
        hooked=[event for event in hooked if event.what in "+-"],
        holds=sorted(_holds(hooked, hooks, skipped)),
        temporaries=temporaries,
    )


class _Hooks:
    """Saved-tensor hooks that keep everything, and leave a mark in the profile."""

    def __init__(self) -> None:
        self.extents: list[tuple[int, int]] = []
        self.storages: list[int] = []
        self.asked_by: dict[int, str] = {}

    def pack(self, tensor: torch.Tensor) -> "_Kept":
        number = len(self.extents)
        self.extents.append(extent(tensor))
        self.storages.append(tensor.untyped_storage()._cdata)
        _mark(f"pack {number}")
        return _Kept(number, tensor.detach())

    def unpack(self, kept: "_Kept") -> torch.Tensor:
        _mark(f"unpack {kept.number}")
        node = torch._C._current_autograd_node()
        self.asked_by.setdefault(kept.number, "" if node is None else node.name())
        return kept.tensor


class _Kept:
    def __init__(self, number: int, tensor: torch.Tensor) -> None:
        self.number = number
        self.tensor = tensor

    def __del__(self) -> None:
        _mark(f"freed {self.number}")


def extent(tensor: torch.Tensor) -> tuple[int, int]:
    """Return the first byte of a tensor in its storage and how many it spans."""
    if not tensor.numel():
        return tensor.storage_offset() * tensor.element_size(), 0
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    last = sum((size - 1) * stride for size, stride in pairs)
    return tensor.storage_offset() * tensor.element_size(), (last + 1) * tensor.element_size()


def _statistics(step: Step) -> Iterator[torch.UntypedStorage]:
    """Yield running statistics: autograd saves them, for a use that training does not make."""
    model = getattr(step, "model", None)
    for name, buffer in model.named_buffers() if model is not None else ():
        if name.endswith(("running_mean", "running_var")):
            yield buffer.untyped_storage()


def _mark(text: str) -> None:
    with record_function(MARK + text):
        pass


@contextmanager
def _marked(region: str) -> Iterator[None]:
    _mark(f"begin {region}")
    yield
    _mark(f"end {region}")


class _Raw(NamedTuple):
    """An event of the profile: a mark, or *nbytes* (less than none: freed) at an address."""

    time_ns: int
    mark: str
    address: int
    nbytes: int
    operator: "tuple[str, int] | None"  # the call that it happened in, as a trace would see it
    in_torch: bool


def _flatten(nodes: Any, operator: tuple[str, int] | None, in_torch: bool) -> Iterator[_Raw]:
    for node in nodes:
        name, time_ns = node.name, node.start_time_ns
        if name == "[memory]":
            fields = node.extra_fields
            yield _Raw(time_ns, "", fields.ptr, fields.alloc_size, operator, in_torch)
        elif name.startswith(MARK):
            yield _Raw(time_ns, name.removeprefix(MARK), 0, 0, None, False)
        else:
            inside = operator
            if operator is None:
                inside = (name, time_ns) if _dispatched(node) else None
            elif name == "aten::clone" and operator[0] in LAZY:
                inside = (name, time_ns)
            yield from _flatten(node.children, inside, in_torch or name in _overloads())


@cache
def _overloads() -> dict[str, list[str]]:
    found = defaultdict(list)
    for name in torch._C._dispatch_get_all_op_names():
        found[name.partition(".")[0]].append(name)
    return dict(found)


def _dispatched(node: Any) -> bool:
    """Whether an operator reaches a device as it is, and is not a composite of others.

    Of some names one overload is a composite of another: the inner call is the one that counts.
    """
    composite = [_is_composite(name) for name in _overloads().get(node.name, ())]
    if not composite or all(composite):
        return False
    return not any(composite) or all(child.name != node.name for child in node.children)


@cache
def _is_composite(name: str) -> bool:
    key = "CompositeImplicitAutograd"
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(name, key))


class _Block:
    def __init__(self, raw: _Raw) -> None:
        self.nbytes = raw.nbytes
        self.operator = raw.operator
        self.of_host = not raw.in_torch and raw.nbytes in (*NUMBER_NBYTES, GENERATOR_NBYTES)
        self.temporary = False


def _regions(found: list[_Raw]) -> tuple[dict[str, list[Event]], int]:
    """Return what happened in each marked region, and how many temporaries were left out."""
    alive: dict[int, _Block] = {}
    steps: list[tuple[str, str, _Block | None, str]] = []
    region = ""
    for raw in found:
        if raw.mark:
            word, _, rest = raw.mark.partition(" ")
            if word == "begin":
                region = rest
            steps.append((region, raw.mark, None, ""))
            if word == "end":
                region = ""
            continue
        who = raw.operator[0] if raw.operator else "python"
        if raw.nbytes > 0:
            alive[raw.address] = block = _Block(raw)
            steps.append((region, "+", block, who))
        elif raw.nbytes < 0:
            block = alive.pop(raw.address, None)
            if block is None:  # older than the profile
                continue
            block.temporary = block.operator is not None and block.operator == raw.operator
            steps.append((region, "-", block, who))
    regions: dict[str, list[Event]] = defaultdict(list)
    temporaries = 0
    for region, what, block, who in steps:
        if block is None:
            regions[region].append(Event(what, 0, who))
        elif block.temporary:
            temporaries += region == "bare" and what == "+"
        elif not block.of_host:
            regions[region].append(Event(what, block.nbytes, who))
    return regions, temporaries


def _holds(events: list[Event], hooks: _Hooks, skipped: set[int]) -> Iterator[Hold]:
    """Yield the saved tensors. One that nobody asked for counts as asked for when it went."""
    allocations = alive = 0
    at: dict[str, tuple[int, int]] = {}
    for event in events:
        if event.what == "+":
            allocations += 1
            alive += event.nbytes
        elif event.what == "-":
            alive -= event.nbytes
        else:
            at.setdefault(event.what, (allocations, alive))
    end = (allocations, alive)
    for number, (offset, nbytes) in enumerate(hooks.extents):
        if hooks.storages[number] in skipped:
            continue
        packed, at_pack = at[f"pack {number}"]
        unpacked, at_unpack = at.get(f"unpack {number}") or at.get(f"freed {number}") or end
        node = hooks.asked_by.get(number, "")
        yield Hold(offset, nbytes, packed, unpacked, node, (at_pack,) * 2, (at_unpack,) * 2)


# -- the trace -------------------------------------------------------------------------------------


def replay(trace: Trace) -> list[Event]:
    """Return what comes and goes when *trace* runs under the policy `liveness`."""
    facts, events = trace.facts, []
    for instruction in decide(find_policy("liveness"), trace, MACHINE).schedule.instructions:
        if isinstance(instruction, Run):
            who = facts.op_names[instruction.op]
            events += [Event("+", facts.nbytes[s], who) for s in facts.fresh[instruction.op]]
            events.append(Event("run", 0, who))
        else:
            assert isinstance(instruction, Free)
            s = instruction.storage
            events.append(Event("-", facts.nbytes[s], facts.names[s]))
    return [event for event in events if event.nbytes or event.what == "run"]


def holds_of(trace: Trace) -> list[Hold]:
    """Return the saved tensors of *trace*, with the bytes alive around their hooks."""
    allocations, most, least, alive = [0], [0], [0], 0
    count = 0
    for event in replay(trace):
        if event.what == "+":
            count += 1
            alive += event.nbytes
        elif event.what == "-":
            alive -= event.nbytes
            least[-1] = alive
        else:
            allocations.append(count)
            most.append(alive)
            least.append(alive)
    storages = {storage.name: storage for storage in trace.storages}
    values = {value.name: value for value in trace.values}
    found = []
    for save in trace.saves:
        value = values.get(save.value)
        storage = storages[value.storage if value else save.value]
        if storage.name.endswith(("running_mean", "running_var")):
            continue
        nbytes = storage.nbytes if value is None or value.nbytes is None else value.nbytes
        found.append(
            Hold(
                value.offset if value else 0,
                nbytes,
                allocations[save.packed],
                allocations[save.unpacked],
                save.node,
                (least[save.packed], most[save.packed]),
                (least[save.unpacked], most[save.unpacked]),
            )
        )
    return sorted(found)


# -- the two side by side --------------------------------------------------------------------------


def swings(events: list[Event]) -> list[Swing]:
    """Return what comes and goes in turns."""
    moves = [event for event in events if event.what in "+-"]
    return [
        Swing(what, tuple(e.nbytes for e in row), tuple(e.who for e in row))
        for what, group in groupby(moves, key=lambda event: event.what)
        for row in [sorted(group, key=lambda event: event.nbytes)]
    ]


def peak(events: list[Event]) -> int:
    """Return the most bytes alive since the start of the step."""
    most = alive = 0
    for event in events:
        alive += {"+": event.nbytes, "-": -event.nbytes}.get(event.what, 0)
        most = max(most, alive)
    return most


def difference(plain: list[Event], other: list[Event]) -> str:
    """Say where *other* first differs in what comes and goes; nothing if it never does."""
    one, two = swings(plain), swings(other)
    for i in range(max(len(one), len(two))):
        here = [each[i : i + 1] for each in (one, two)]
        if [each[:2] for each in here[0]] != [each[:2] for each in here[1]]:
            lines = [f"turn {i} of {len(one)} and {len(two)}:"]
            for title, each in (("plain", one), ("other", two)):
                lines += [f"  {title}  {_show(swing)}" for swing in each[max(0, i - 1) : i + 2]]
            return "\n".join(lines)
    return ""


def _show(swing: Swing) -> str:
    named = zip(swing.sizes, swing.who, strict=True)
    return swing.what + " " + ", ".join(f"{nbytes} {who}" for nbytes, who in named)


def hold_differences(plain: list[Hold], trace: list[Hold], *, partly: bool = False) -> list[str]:
    """Say how the saves of a trace differ from those of the plain step.

    A trace need not hold those that nobody asked for; their bytes are in what comes and goes. If
    *partly*, it need not hold all others: it leaves out one whose storage is written over later, in
    another part.
    """
    plain, trace = ([hold for hold in holds if hold.node] for holds in (plain, trace))
    if partly:
        there = Counter(each[:5] for each in trace)
        found = []
        for hold in plain:
            if there[hold[:5]]:
                there[hold[:5]] -= 1
                found.append(hold)
        plain = found
    one, two = ([each[:5] for each in holds] for holds in (plain, trace))
    if one != two:
        missing = [hold for hold in one if hold not in two]
        wrong = [hold for hold in two if hold not in one]
        return [
            f"{len(one)} saves as (offset, bytes, packed, unpacked, node), in the trace {len(two)}",
            f"only in the plain step {missing}",
            f"only in the trace {wrong}",
        ]
    return [
        f"{name}: {getattr(one, name)[0]} bytes alive, in the trace {getattr(two, name)}: {one}"
        for one, two in zip(plain, trace, strict=True)
        for name in ("at_pack", "at_unpack")
        if not getattr(two, name)[0] <= getattr(one, name)[0] <= getattr(two, name)[1]
    ]
