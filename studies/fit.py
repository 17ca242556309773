"""Fit: the largest value of a trace's parameter with which a step fits a machine."""

from collections.abc import Callable
from typing import Final, Literal

import msgspec
from msgspec import Struct

from ..errors import DoesNotFit, InvalidInput
from ..machines import Machine
from ..notation import Call, build
from ..policies import Policy
from ..reports import Report
from ..sim import simulate
from ..traces import Trace, trace_maker

LARGEST: Final = 1 << 30
"""Where the search gives up: a parameter that takes no memory has no largest value."""

Limit = Literal["device", "host", "parameters"]


class Trial(Struct, frozen=True, kw_only=True):
    """One value that was tried: whether it fits, why not, and the report if there was a step."""

    value: int
    fits: bool
    why: str
    report: Report | None


class Fit(Struct, frozen=True, kw_only=True):
    """The largest value that fits, None if not even the smallest does, and the next larger one.

    *limit* is what stands in the way of *too_large*: "parameters", if what outlives the step alone
    is too much for the device; "host", if the step would fit with more of the other tiers; else
    the "device".
    """

    parameter: str
    best: Trial | None
    too_large: Trial
    limit: Limit
    trials: int


def fit(
    call: Call,
    parameter: str,
    machine: Machine,
    policy: Policy,
    budget: int | None = None,
    tried: Callable[[Trial], None] = lambda trial: None,
) -> Fit:
    """Return the largest value of *parameter*, from 1 on, with which the trace *call* fits.

    By bisection: it is doubled until it does not fit, then the interval is halved; that what fits
    at some value fits at every smaller one is taken for granted. *tried* is told of each trial.
    Raises UnknownName or InvalidInput for a trace or parameter that is none, for a parameter that
    is given already, and if no value is too large.
    """
    if parameter in call.parameters:
        raise InvalidInput(f"{parameter!r} is to be varied and given as well; leave it out of one")
    maker = trace_maker(call.name)
    trials = 0

    def made(value: int) -> Trace:
        return build(maker, Call(call.name, call.parameters | {parameter: str(value)}), "trace")

    def attempt(value: int) -> Trial:
        nonlocal trials
        trials += 1
        trial = _attempt(value, made(value), policy, machine, budget)
        tried(trial)
        return trial

    best: Trial | None = None
    trial = attempt(1)
    while trial.fits:
        best = trial
        if best.value >= LARGEST:
            raise InvalidInput(
                f"{call.name} fits with {parameter}={best.value}: this parameter takes no memory"
            )
        trial = attempt(2 * best.value)
    while best is not None and trial.value - best.value > 1:
        between = attempt((best.value + trial.value) // 2)
        if between.fits:
            best = between
        else:
            trial = between
    limit = _limit(trial.value, made(trial.value), policy, machine, budget)
    return Fit(parameter=parameter, best=best, too_large=trial, limit=limit, trials=trials)


def _attempt(
    value: int, trace: Trace, policy: Policy, machine: Machine, budget: int | None
) -> Trial:
    try:
        report = simulate(trace, policy, machine, budget)
    except DoesNotFit as error:
        return Trial(value=value, fits=False, why=str(error), report=None)
    return Trial(value=value, fits=report.fits, why=report.why, report=report)


def _limit(value: int, trace: Trace, policy: Policy, machine: Machine, budget: int | None) -> Limit:
    """Tell what a step that does not fit is short of."""
    if trace.facts.start_nbytes > min(machine.device_nbytes, budget or machine.device_nbytes):
        return "parameters"
    boundless = tuple(
        msgspec.structs.replace(tier, nbytes=max(tier.nbytes, 1) << 10) for tier in machine.tiers
    )
    roomy = msgspec.structs.replace(machine, tiers=boundless)
    return "host" if _attempt(value, trace, policy, roomy, budget).fits else "device"
