"""The checker is sound: no schedule that it accepts computes a wrong value.

The oracle is `symbolic.py`. Legal schedules are mutated by the thousand; those that the checker
still accepts must compute what the plain step computes. Then one schedule for each rule, broken by
hand.
"""

from collections import Counter
from collections.abc import Iterator
from functools import cache
from random import Random

import msgspec
import pytest
from symbolic import Symbolic, execute

from superneurons.errors import IllegalSchedule, InvalidSchedule
from superneurons.machines import find_machine
from superneurons.policies import decide, find_policy
from superneurons.schedules import (
    Copy,
    Discard,
    Fetch,
    Free,
    Instruction,
    Rerun,
    Run,
    Schedule,
    check,
)
from superneurons.traces import Operation, Release, Save, Storage, Trace, Value, random_trace

# Tiers that are small beside the random traces, so that some copies find no room.
MACHINE = find_machine(
    "h200:host_memory=200,peer_memory=300,host_latency=100ns,"
    "host_to_device=50MB/s,device_to_host=40MB/s"
)
POLICIES = (
    "baseline",
    "liveness",
    "cache",
    "liveness+cache:tier=peer",
    "offload",
    "offload:release=immediate,lookahead=0",
    "offload:release=pressure+cache:tier=peer",
    "liveness+offload:release=2",
    "recompute",
    "recompute:strategy=speed",
    "liveness+recompute:strategy=memory",
    "superneurons",
    "liveness+offload+recompute",
    "recompute+offload+cache+liveness",
    "liveness+recompute:strategy=memory+cache:tier=peer+offload",
)
UNLIMITED = 2**50


# -- random schedules ----------------------------------------------------------------------------


def updating(trace: Trace, rng: Random) -> Trace:
    """Turn some writes in place into updates in passing: a rerun must then not do them again."""
    version = {value.name: value.version for value in trace.values}
    operations = []
    for op in trace.operations:
        passing = [v for v in op.writes if version.get(v, 0) and rng.random() < 0.4]
        operations.append(
            msgspec.structs.replace(
                op,
                writes=tuple(v for v in op.writes if v not in passing),
                updates=(*op.updates, *passing),
            )
        )
    return msgspec.structs.replace(trace, operations=tuple(operations))


@cache
def decided() -> list[tuple[Trace, Symbolic, list[Schedule]]]:
    """Random traces of both kinds, each with the schedules of many policies in two budgets."""
    found = []
    for seed in range(120):
        rng = Random(seed)
        trace = random_trace(rng, rng.randint(1, 14), rng.choice(("everywhere", "saves")))
        schedules = [
            decide(find_policy(policy), trace, MACHINE, budget).schedule
            for policy in POLICIES
            for budget in (None, trace.facts.floor_nbytes)
        ]
        found.append((trace, Symbolic(trace), schedules))
    return found


def test_every_schedule_of_a_built_in_policy_computes_what_the_plain_step_computes():
    faults = [
        (trace.notes, schedule.policy, schedule.budget_nbytes, difference)
        for trace, plain, schedules in decided()
        for schedule in schedules
        if (difference := plain.difference(schedule))
    ]
    assert faults == []
    every = [step for _, _, schedules in decided() for s in schedules for step in s.instructions]
    kinds = Counter(type(step) for step in every)
    assert min(kinds[kind] for kind in (Run, Rerun, Copy, Free, Fetch, Discard)) > 1_000


# -- mutants -------------------------------------------------------------------------------------


class Mutator:
    """Changes schedules of one trace at random, some blindly, some so that they may stay legal."""

    def __init__(self, rng: Random, trace: Trace) -> None:
        self._rng = rng
        self._ops = len(trace.operations)
        self._storages = len(trace.storages)
        self._changes = (
            self._drop,
            self._duplicate,
            self._swap,
            self._move,
            self._insert,
            self._replace_operand,
            self._replace_kind,
            self._send_away_and_back,
            self._drop_and_rerun,
            self._drop_and_rerun,
        )

    def mutant(self, steps: list[Instruction]) -> list[Instruction]:
        """Return a changed copy of *steps*: one change, sometimes two or three."""
        changed = list(steps)
        for _ in range(self._rng.choice((1, 1, 2, 3))):
            self._rng.choice(self._changes)(changed)
        return changed

    def _drop(self, steps: list[Instruction]) -> None:
        if len(steps) > 1:
            del steps[self._position(steps)]

    def _duplicate(self, steps: list[Instruction]) -> None:
        steps.insert(self._position(steps), steps[self._position(steps)])

    def _swap(self, steps: list[Instruction]) -> None:
        i = self._position(steps)
        steps[i : i + 2] = reversed(steps[i : i + 2])

    def _move(self, steps: list[Instruction]) -> None:
        steps.insert(self._position(steps), steps.pop(self._position(steps)))

    def _insert(self, steps: list[Instruction]) -> None:
        kind = self._rng.choice((Rerun, Copy, Free, Free, Fetch, Discard))
        if kind is Rerun:
            step: Instruction = Rerun(self._rng.randrange(self._ops))
        elif kind is Free:
            step = Free(self._storage(steps))
        else:
            step = kind(self._storage(steps), self._tier())
        steps.insert(self._position(steps), step)

    def _replace_operand(self, steps: list[Instruction]) -> None:
        i, rng = self._position(steps), self._rng
        step = steps[i]
        if isinstance(step, Run | Rerun):
            steps[i] = msgspec.structs.replace(step, op=rng.randint(-1, self._ops))
        elif isinstance(step, Free) or rng.random() < 0.5:
            steps[i] = msgspec.structs.replace(step, storage=rng.randint(-1, self._storages))
        else:
            steps[i] = msgspec.structs.replace(step, tier=rng.choice(("host", "peer", "moon")))

    def _replace_kind(self, steps: list[Instruction]) -> None:
        i, rng = self._position(steps), self._rng
        step = steps[i]
        if isinstance(step, Run):
            steps[i] = rng.choice((Rerun(step.op), Run(step.op, algorithm=rng.choice((-1, 1)))))
        elif isinstance(step, Rerun):
            steps[i] = Run(step.op)
        else:
            steps[i] = rng.choice((Copy, Free, Fetch, Discard))(step.storage)

    def _send_away_and_back(self, steps: list[Instruction]) -> None:
        out, back = sorted((self._position(steps), self._position(steps)))
        s, tier = self._storage(steps), self._tier()
        coming: list[Instruction] = [Fetch(s, tier), Discard(s, tier)]
        if self._rng.random() < 0.2:
            coming.pop()  # whoever discards it later may have been there before
        steps[back:back] = coming
        steps[out:out] = [Copy(s, tier), Free(s)]

    def _drop_and_rerun(self, steps: list[Instruction]) -> None:
        """Free something and, perhaps later, run an operation that stands nearby once more."""
        out = self._position(steps)
        back = min(len(steps), out + self._rng.choice((0, 0, 1, 2, 5)))
        runs = [step.op for step in steps[:back] if isinstance(step, Run)]
        op = self._rng.choice(runs[-3:]) if runs else 0
        steps.insert(back, Rerun(op))
        steps.insert(out, Free(self._storage(steps)))

    def _position(self, steps: list[Instruction]) -> int:
        return self._rng.randrange(len(steps))

    def _storage(self, steps: list[Instruction]) -> int:
        """Return a storage, most often one that the schedule frees somewhere."""
        if self._rng.random() < 0.9:
            freed = [step.storage for step in steps if isinstance(step, Free)]
            if freed:
                return self._rng.choice(freed)
        return self._rng.randrange(self._storages)

    def _tier(self) -> str:
        return self._rng.choice(("host", "peer"))


def unlimited(schedule: Schedule, steps: list[Instruction]) -> Schedule:
    """Return *schedule* with other instructions and, so that bytes excuse no mutant, no limit."""
    return msgspec.structs.replace(
        schedule, instructions=steps, limit_nbytes=UNLIMITED, short_nbytes=0, short_op=-1
    )


def accepted(trace: Trace, schedule: Schedule) -> bool:
    """Whether the checker accepts; anything but a refusal by a rule is an error of the checker."""
    try:
        check(trace, schedule)
    except IllegalSchedule:
        return False
    return True


def bases() -> Iterator[tuple[Random, Trace, Symbolic, Schedule]]:
    """Return what is to be mutated: of every trace some schedules, and some that update.

    The cache is left out of the latter: it has a test of its own there.
    """
    for seed, (trace, plain, schedules) in enumerate(decided()):
        rng = Random(1_000 + seed)
        for schedule in rng.sample(schedules, 6):
            yield rng, trace, plain, schedule
        trace = updating(trace, rng)
        plain = Symbolic(trace)
        for name in rng.sample(("liveness", "recompute", "liveness+offload+recompute"), 2):
            schedule = decide(find_policy(name), trace, MACHINE).schedule
            yield rng, trace, plain, schedule


def test_no_mutant_that_the_checker_accepts_computes_a_wrong_value():
    counts: Counter[str] = Counter()
    faults = []
    for rng, trace, plain, schedule in bases():
        mutator = Mutator(rng, trace)
        steps = list(schedule.instructions)
        for _ in range(150):
            mutant = mutator.mutant(steps)
            if mutant == steps:
                continue
            counts["tried"] += 1
            changed = unlimited(schedule, mutant)
            difference = plain.difference(changed)
            if not accepted(trace, changed):
                counts["refused, and wrong"] += difference is not None
                continue
            counts["accepted"] += 1
            counts["accepted, no permutation"] += len(mutant) != len(steps)
            if difference:
                faults.append((trace, schedule.policy, mutant, difference))
            elif rng.random() < 0.5:  # wander off among legal schedules that no policy would make
                steps = mutant
    assert faults == []
    # The test has teeth: there were mutants enough, many of them wrong, and not all were refused.
    assert counts["tried"] > 100_000
    assert counts["refused, and wrong"] > 50_000
    assert counts["accepted"] > 3_000
    assert counts["accepted, no permutation"] > 400


def test_no_single_edit_of_a_small_schedule_that_the_checker_accepts_computes_a_wrong_value():
    tried = passed = 0
    faults = []
    for seed in range(40):
        trace = random_trace(Random(seed), 1 + seed % 4, ("everywhere", "saves")[seed % 2])
        plain = Symbolic(trace)
        steps_there = every_instruction(trace)
        for policy in ("superneurons", "liveness+offload:release=immediate,lookahead=0"):
            schedule = decide(
                find_policy(policy), trace, MACHINE, trace.facts.floor_nbytes
            ).schedule
            for mutant in single_edits(list(schedule.instructions), steps_there):
                tried += 1
                changed = unlimited(schedule, mutant)
                if accepted(trace, changed):
                    passed += 1
                    difference = plain.difference(changed)
                    if difference:
                        faults.append((trace, schedule.policy, mutant, difference))
    assert faults == []
    assert tried > 80_000
    assert passed > 250


def test_no_schedule_written_at_random_under_the_checkers_eyes_computes_a_wrong_value():
    counts: Counter[type] = Counter()
    faults = []
    for seed in range(240):
        rng = Random(seed)
        trace = random_trace(rng, rng.randint(2, 10), ("everywhere", "saves")[seed % 2])
        if seed % 3 == 0:
            trace = updating(trace, rng)
        steps = Writer(rng, trace).steps()
        if steps is None:
            continue
        counts[Schedule] += 1
        counts.update(type(step) for step in steps)
        schedule = written(trace, steps)
        check(trace, schedule)
        difference = execute(trace, schedule)
        if difference:
            faults.append((trace, steps, difference))
    assert faults == []
    assert counts[Schedule] > 150
    assert min(counts[kind] for kind in (Rerun, Copy, Fetch, Discard)) > 500


class Writer:
    """Writes schedules that no policy would: whatever the checker lets pass, wise or not."""

    def __init__(self, rng: Random, trace: Trace) -> None:
        self._rng = rng
        self._trace = trace
        self._alphabet = [step for step in every_instruction(trace) if not isinstance(step, Run)]
        self._back = [step for step in self._alphabet if isinstance(step, Fetch | Rerun)]
        self._program = [Free(s) for s, managed in enumerate(trace.facts.managed) if not managed]
        self._steps: list[Instruction] = []

    def steps(self) -> list[Instruction] | None:
        """Return a whole schedule; None where something was dropped that does not come back."""
        self._try_all(self._program)
        for op in range(len(self._trace.operations)):
            for step in self._rng.choices(self._alphabet, k=40):
                # What is dropped without a copy may never come back, so that is seldom tried.
                if not isinstance(step, Free | Discard) or self._rng.random() < 0.1:
                    self._try(step)
                if self._steps[-1:] == [step] and isinstance(step, Copy):
                    self._try(Free(step.storage))
            patience = 6
            while not self._try(Run(op)):
                self._try_all(self._rng.sample(self._back, len(self._back)))
                if (patience := patience - 1) == 0:
                    return None
            self._try_all(self._program)
        stored = range(len(self._trace.storages))
        self._try_all([step for s in stored for step in (Discard(s), Free(s))])
        return self._steps

    def _try_all(self, steps: list[Instruction]) -> None:
        for step in steps:
            self._try(step)

    def _try(self, step: Instruction) -> bool:
        """Write *step* if the checker finds no fault up to there: if it complains of the end."""
        self._steps.append(step)
        try:
            check(self._trace, written(self._trace, self._steps))
        except IllegalSchedule as error:
            if error.position < len(self._steps):
                self._steps.pop()
                return False
        return True


def every_instruction(trace: Trace) -> list[Instruction]:
    """Return all instructions that there are over a trace, with one tier."""
    steps: list[Instruction] = []
    for op in range(len(trace.operations)):
        steps += [Run(op), Rerun(op)]
    for s in range(len(trace.storages)):
        steps += [Copy(s), Free(s), Fetch(s), Discard(s)]
    return steps


def single_edits(
    steps: list[Instruction], alphabet: list[Instruction]
) -> Iterator[list[Instruction]]:
    """Yield *steps* with one instruction dropped, replaced, inserted or swapped with its next."""
    for i in range(len(steps)):
        before, here, after = steps[:i], steps[i], steps[i + 1 :]
        yield before + after
        if after:
            yield [*before, after[0], here, *after[1:]]
        for step in alphabet:
            yield [*before, step, here, *after]
            if step != here:
                yield [*before, step, *after]


# -- each rule, broken by hand -------------------------------------------------------------------

# A layer step. The in-place relu makes version 1 of x; what is drawn cannot be drawn again.
WEIGHTS, X, Y, NOISE, DX = range(5)
F, RELU, G, DRAW, B = range(5)
LAYERED = Trace(
    name="layered",
    places="everywhere",
    times="none",
    storages=(
        Storage(name="weights", kind="parameter", nbytes=8, alive_at_start=True),
        Storage(name="x", kind="activation", nbytes=100),
        Storage(name="y", kind="activation", nbytes=50),
        Storage(name="noise", kind="activation", nbytes=10),
        Storage(name="dx", kind="activation-gradient", nbytes=8),
    ),
    values=(Value(name="relu(x)", storage="x", version=1),),
    operations=(
        Operation(name="f", kind="conv", phase="forward", reads=("weights",), writes=("x",)),
        Operation(
            name="relu", kind="activation", phase="forward", reads=("x",), writes=("relu(x)",)
        ),
        Operation(name="g", kind="conv", phase="forward", reads=("relu(x)",), writes=("y",)),
        Operation(
            name="draw",
            kind="sample",
            phase="forward",
            reads=("y",),
            writes=("noise",),
            recompute="opaque",
        ),
        Operation(
            name="b",
            kind="conv",
            phase="backward",
            reads=("relu(x)", "y", "noise"),
            writes=("dx",),
        ),
    ),
)
FORWARD = [Run(F), Run(RELU), Run(G), Run(DRAW)]
FREES = [Free(X), Free(Y), Free(NOISE), Free(DX)]

# A recorded step, where hooks fire at places 3 (y is packed), 4 (a is packed) and 5 (both are
# unpacked). The program lets go of y at 3 and of a at 4, so y may be absent from 3 to 5 and a from
# 4 to 5; z, q, da and dy are the program's own.
A, YS, Z, Q, DY, DA = range(1, 7)
RECORDED = Trace(
    name="recorded",
    places="saves",
    times="none",
    storages=(
        Storage(name="weights", kind="parameter", nbytes=8, alive_at_start=True),
        Storage(name="a", kind="activation", nbytes=16),
        Storage(name="y", kind="activation", nbytes=16),
        Storage(name="z", kind="activation", nbytes=16),
        Storage(name="q", kind="activation", nbytes=16),
        Storage(name="dy", kind="activation-gradient", nbytes=8),
        Storage(name="da", kind="activation-gradient", nbytes=8),
    ),
    operations=(
        Operation(name="fa", kind="conv", phase="forward", reads=("weights",), writes=("a",)),
        Operation(name="fy", kind="relu", phase="forward", reads=("a",), writes=("y",)),
        Operation(name="fz", kind="conv", phase="forward", reads=("y",), writes=("z",)),
        Operation(name="fq", kind="conv", phase="forward", reads=("a",), writes=("q",)),
        Operation(name="bz", kind="conv", phase="backward", reads=("z", "q"), writes=("dy",)),
        Operation(name="by", kind="conv", phase="backward", reads=("y", "a", "dy"), writes=("da",)),
    ),
    releases=(
        Release(storage="a", place=4),
        Release(storage="y", place=3),
        Release(storage="z", place=5),
        Release(storage="q", place=5),
        Release(storage="dy", place=6),
        Release(storage="da", place=6),
    ),
    saves=(Save(value="y", packed=3, unpacked=5), Save(value="a", packed=4, unpacked=5)),
)
RUNS = [Run(op) for op in range(6)]
PROGRAM_FREES = [Free(Z), Free(Q)]
ENDING = [Free(A), Free(YS), Free(DY), Free(DA)]


def written(trace: Trace, steps: list[Instruction], **promises: int) -> Schedule:
    """Return a schedule written by hand; it promises no limit unless told otherwise."""
    return Schedule(
        trace=trace.name,
        digest=trace.facts.digest,
        policy="by hand",
        limit_nbytes=promises.get("limit", UNLIMITED),
        budget_nbytes=None,
        tiers={"host": promises.get("host", 1_000), "peer": 1_000},
        instructions=steps,
        short_nbytes=promises.get("short", 0),
    )


def refusal(trace: Trace, steps: list[Instruction], **promises: int) -> IllegalSchedule:
    """Return the checker's refusal of a schedule written by hand."""
    with pytest.raises(IllegalSchedule) as caught:
        check(trace, written(trace, steps, **promises))
    return caught.value


@pytest.mark.parametrize(
    "steps",
    [
        [*FORWARD, Run(B), *FREES],
        [*FORWARD, Copy(X), Free(X), Fetch(X), Run(B), Discard(X), *FREES],
        [*FORWARD, Free(X), Rerun(F), Rerun(RELU), Run(B), *FREES],
        [*FORWARD, Free(Y), Rerun(G), Run(B), *FREES],
    ],
)
def test_the_layered_step_may_offload_and_recompute(steps):
    assert check(LAYERED, written(LAYERED, steps)).device_peak_nbytes == 8 + 100 + 50 + 10 + 8
    assert execute(LAYERED, written(LAYERED, steps)) is None


@pytest.mark.parametrize(
    "steps",
    [
        [*RUNS[:5], *PROGRAM_FREES, Run(5), *ENDING],
        [
            *RUNS[:3],
            Copy(YS),
            Free(YS),
            *RUNS[3:5],
            *PROGRAM_FREES,
            Fetch(YS),
            Run(5),
            Discard(YS),
            *ENDING,
        ],
        [*RUNS[:4], Free(YS), Run(4), *PROGRAM_FREES, Rerun(1), Run(5), *ENDING],
    ],
)
def test_the_recorded_step_may_offload_and_recompute_at_its_places(steps):
    assert check(RECORDED, written(RECORDED, steps)).step_nbytes[0] == 16
    assert execute(RECORDED, written(RECORDED, steps)) is None


@pytest.mark.parametrize(
    ("rule", "steps", "position", "names"),
    [
        ("order", [Run(RELU)], 0, ["'relu'", "'f' is next"]),
        ("order", [Run(F), Run(F)], 1, ["'f'"]),
        ("order", [Run(99)], 0, ["operation 99"]),
        ("order", [Run(F, algorithm=1)], 0, ["'f'", "algorithm 1"]),
        ("order", [*FORWARD, Free(X), Free(Y), Free(NOISE)], 7, ["'b'"]),
        ("order", [*FORWARD, Run(B), *FREES, Run(B)], 9, ["'b'", "the end"]),
        ("inputs", [*FORWARD[:2], Free(X), Run(G)], 3, ["'g'", "'x'", "absent"]),
        ("inputs", [*FORWARD[:2], Free(X), Rerun(F), Run(G)], 4, ["'g'", "'x'", "version 0"]),
        ("inputs", [*FORWARD[:3], Free(X), Free(Y), Rerun(G)], 5, ["'g'", "'x'", "absent"]),
        ("inputs", [*FORWARD[:2], Rerun(RELU)], 2, ["'relu'", "'x'", "version 1"]),
        ("rerun", [*FORWARD[:2], Rerun(G)], 2, ["operation 2"]),
        ("rerun", [Rerun(-1)], 0, ["operation -1"]),
        ("rerun", [*FORWARD, Free(NOISE), Rerun(DRAW)], 5, ["'draw'", "opaque"]),
        ("rerun", [*FORWARD[:3], Rerun(G)], 3, ["'g'", "'y'"]),
        ("resident", [Free(X)], 0, ["'x'", "absent"]),
        ("resident", [Free(99)], 0, ["storage 99"]),
        ("resident", [*FORWARD, Free(X), Free(X)], 5, ["'x'", "absent"]),
        ("resident", [Copy(X)], 0, ["'x'", "absent"]),
        ("resident", [*FORWARD, Copy(X), Fetch(X)], 5, ["'x'", "present"]),
        ("managed", [Free(WEIGHTS)], 0, ["'weights'"]),
        ("managed", [Copy(WEIGHTS)], 0, ["'weights'"]),
        ("managed", [Fetch(WEIGHTS)], 0, ["'weights'"]),
        ("managed", [Discard(WEIGHTS)], 0, ["'weights'"]),
        ("managed", [Copy(-1)], 0, ["storage -1"]),
        ("tier", [*FORWARD, Copy(X, "moon")], 4, ["'moon'"]),
        ("tier", [*FORWARD, Copy(X), Copy(X)], 5, ["'x'", "host"]),
        ("tier", [*FORWARD, Copy(X), Free(X), Fetch(X, "peer")], 6, ["'x'", "peer"]),
        ("tier", [*FORWARD, Discard(X)], 4, ["'x'", "host"]),
        ("tier", [*FORWARD, Copy(X), Discard(X), Discard(X)], 6, ["'x'", "host"]),
        ("end", [*FORWARD, Run(B), Free(X), Free(Y), Free(DX)], 8, ["'noise'", "on the device"]),
        ("end", [*FORWARD, Copy(X), Run(B), *FREES], 10, ["'x'", "host"]),
    ],
)
def test_a_broken_rule_is_named_with_what_breaks_it_in_a_layer_step(rule, steps, position, names):
    error = refusal(LAYERED, steps)
    assert (error.rule, error.position) == (rule, position)
    assert [name for name in names if name not in str(error)] == []


@pytest.mark.parametrize(
    ("rule", "steps", "position", "names"),
    [
        # z dies at place 5 by the program's hand: neither later nor sooner, and not by a policy.
        ("program", [*RUNS[:5], Free(Q), Run(5)], 6, ["'z'"]),
        ("managed", [*RUNS[:4], Free(Z)], 4, ["'z'"]),
        ("managed", [*RUNS[:3], Copy(Z)], 3, ["'z'"]),
        # y may go from place 3 on, but is unpacked at 5; a may go from 4 on.
        ("managed", [*RUNS[:5], Copy(YS), Free(YS)], 6, ["'y'", "place 5"]),
        ("managed", [*RUNS[:3], Free(A)], 3, ["'a'", "place 3"]),
        ("managed", [*RUNS[:3], Copy(A)], 3, ["'a'", "pack"]),
        ("place", [*RUNS[:2], Free(YS)], 2, ["'y'"]),
        ("place", [*RUNS[:2], Copy(YS)], 2, ["'y'"]),
        ("place", [*RUNS[:2], Rerun(0)], 2, ["'fa'"]),
        # y is computed from a, which autograd has not packed before place 4.
        ("recipe", [*RUNS[:3], Free(YS)], 3, ["'y'", "'a'"]),
        ("recipe", [*RUNS[:3], Copy(YS), Free(YS), Rerun(1)], 5, ["'fy'", "'a'"]),
    ],
)
def test_a_broken_rule_is_named_with_what_breaks_it_in_a_recorded_step(
    rule, steps, position, names
):
    error = refusal(RECORDED, steps)
    assert (error.rule, error.position) == (rule, position)
    assert [name for name in names if name not in str(error)] == []


def test_a_copy_needs_room_in_its_tier():
    error = refusal(LAYERED, [*FORWARD, Copy(X)], host=99)
    assert error.rule == "tier"
    assert "'x'" in str(error)
    error = refusal(LAYERED, [*FORWARD, Copy(X), Copy(NOISE)], host=109)
    assert (error.rule, error.position) == ("tier", 5)
    assert "'noise'" in str(error)
    again = [*FORWARD, Copy(X), Discard(X), Copy(X), Discard(X), Run(B), *FREES]
    assert check(LAYERED, written(LAYERED, again, host=100)).tier_peak_nbytes["host"] == 100


def test_the_device_holds_all_of_it_or_the_schedule_says_how_much_it_is_short():
    # 8 + 100 + 50 + 10 bytes are there when draw has run, 8 more for b.
    steps = [*FORWARD, Run(B), *FREES]
    assert check(LAYERED, written(LAYERED, steps, limit=176)).short == 0
    assert check(LAYERED, written(LAYERED, steps, limit=166, short=10)).short == 10
    error = refusal(LAYERED, steps, limit=166)
    assert (error.rule, error.position) == ("limit", 3)
    error = refusal(LAYERED, steps, limit=166, short=9)
    assert (error.rule, error.position) == ("limit", 4)
    error = refusal(LAYERED, steps, limit=166, short=11)
    assert (error.rule, error.position) == ("limit", 9)


def test_a_refusal_for_want_of_bytes_names_the_operation():
    assert "'draw'" in str(refusal(LAYERED, [*FORWARD, Run(B), *FREES], limit=166))


def test_a_device_that_is_too_small_for_what_is_there_at_the_start_is_short():
    # Nothing after the start needs as much as the old batch and the weights together.
    trace = Trace(
        name="batch",
        places="everywhere",
        times="none",
        storages=(
            Storage(name="weights", kind="parameter", nbytes=10, alive_at_start=True),
            Storage(name="old", kind="input", nbytes=100, alive_at_start=True),
            Storage(name="new", kind="input", nbytes=100, becomes="old"),
        ),
        operations=(Operation(name="load", kind="copy", phase="optimizer", writes=("new",)),),
        releases=(Release(storage="old", place=0),),
    )
    steps = [Free(1), Run(0)]
    assert check(trace, written(trace, steps, limit=110)).device_peak_nbytes == 110
    inplace = msgspec.structs.replace(
        LAYERED,
        operations=LAYERED.operations[:0],
        storages=LAYERED.storages[:1],
        values=(),
    )
    assert refusal(inplace, [], limit=7).rule == "limit"
    assert check(inplace, written(inplace, [], limit=7, short=1)).short == 1


def test_a_tier_is_not_empty_while_it_holds_a_copy_of_no_bytes():
    empty = msgspec.structs.replace(LAYERED.storages[X], nbytes=0)
    storages = (LAYERED.storages[WEIGHTS], empty, *LAYERED.storages[Y:])
    trace = msgspec.structs.replace(LAYERED, storages=storages)
    error = refusal(trace, [*FORWARD, Copy(X), Run(B), *FREES])
    assert error.rule == "end"
    assert "'x'" in str(error)


def test_a_schedule_of_another_trace_is_refused_by_its_digest():
    schedule = written(LAYERED, [*FORWARD, Run(B), *FREES])
    with pytest.raises(InvalidSchedule, match=r"'layered'.*'recorded'"):
        check(RECORDED, schedule)


def test_the_oracle_sees_what_is_wrong_without_the_checker():
    wrong = [
        [*FORWARD[:2], Free(X), Rerun(F), Run(G)],  # the old version of x
        [*FORWARD, Free(NOISE), Rerun(DRAW), Run(B), *FREES],  # drawn again
        [*FORWARD, Free(Y), Run(B)],
        [Run(F), Copy(X), Run(RELU), Free(X), Fetch(X), *FORWARD[2:], Run(B), *FREES],  # stale
        [*FORWARD, *FREES],
        [Run(RELU)],
    ]
    assert [steps for steps in wrong if execute(LAYERED, written(LAYERED, steps)) is None] == []


def test_an_activation_that_is_updated_in_passing_may_be_cached_before_and_after():
    # The copy of x that the cache made before the update is stale after it.
    def operation(name: str, phase: str, **values: tuple[str, ...]) -> Operation:
        return Operation(name=name, kind="conv", phase=phase, **values)

    trace = Trace(
        name="updated",
        places="everywhere",
        times="none",
        storages=tuple(
            Storage(name=name, kind="activation", nbytes=nbytes)
            for name, nbytes in (("x", 64), ("big", 64), ("bigger", 64), ("y", 1))
        ),
        values=(Value(name="x, updated", storage="x", version=1),),
        operations=(
            operation("f", "forward", writes=("x",)),
            operation("g", "forward", writes=("big",)),
            operation("update", "forward", writes=("y",), updates=("x, updated",)),
            operation("h", "forward", writes=("bigger",)),
            operation("b", "backward", reads=("x, updated",)),
        ),
    )
    schedule = decide(find_policy("cache"), trace, MACHINE, 100).schedule
    assert sum(step == Copy(0) for step in schedule.instructions) == 2
    assert execute(trace, schedule) is None
