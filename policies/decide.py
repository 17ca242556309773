"""Decide: ask a policy for its schedule, and prove it before anybody uses it."""

import traceback
from typing import NamedTuple

from ..errors import (
    DoesNotFit,
    IllegalSchedule,
    InvalidInput,
    InvalidSchedule,
    PolicyFailed,
    SuperneuronsError,
)
from ..machines import Machine
from ..notation import format_bytes
from ..schedules import Ledger, Schedule, check
from ..traces import Trace, without_collector
from .base import Policy
from .registry import distribution_of, find_policy


class Decision(NamedTuple):
    """A schedule that has been proved, and the ledger of the proof."""

    schedule: Schedule
    ledger: Ledger


def decide(
    policy: Policy | str, trace: Trace, machine: Machine, budget: int | None = None
) -> Decision:
    """Return the schedule of *trace* that *policy*, or the one of that name, makes, proved.

    Raises UnknownName if there is none, InvalidInput if the trace lacks what the policy needs or
    the budget is larger than the device, DoesNotFit if *budget* is below what a single operation
    needs, PolicyFailed if the policy raises, returns something that is no schedule, or makes one
    that breaks a rule.
    """
    if isinstance(policy, str):
        policy = find_policy(policy)
    _require_facts(policy, trace)
    _require_room(trace, machine, budget)
    with without_collector():
        schedule = _ask(policy, trace, machine, budget)
        try:
            _require_terms(schedule, machine, budget)
            return Decision(schedule, check(trace, schedule))
        except (IllegalSchedule, InvalidInput) as error:
            raise PolicyFailed(
                f"{_name(policy)} made a schedule that is refused: {error}"
            ) from error
        except Exception as error:  # its fields are not what they are said to be
            raise _failed(policy, error) from error


def _ask(policy: Policy, trace: Trace, machine: Machine, budget: int | None) -> Schedule:
    try:
        schedule: object = policy.schedule(trace, machine, budget)
    except PolicyFailed as error:
        raise PolicyFailed(f"{_name(policy)}: {error}") from error
    except SuperneuronsError as error:
        if distribution_of(policy) == "superneurons":
            raise
        raise PolicyFailed(f"{_name(policy)}: {error}") from error
    except Exception as error:
        raise _failed(policy, error) from error
    if not isinstance(schedule, Schedule):
        raise PolicyFailed(f"{_name(policy)} returned {schedule!r}, which is no Schedule")
    return schedule


def _name(policy: Policy) -> str:
    try:
        label = repr(policy)
    except Exception:  # a plugin's, and it has failed already
        label = type(policy).__name__
    return f"policy {label} of {distribution_of(policy)}"


def needs_of(policy: Policy) -> frozenset[str]:
    """Return what a policy says it needs of a trace."""
    try:
        needs = getattr(policy, "needs", ())
        return frozenset({needs} if isinstance(needs, str) else needs)
    except Exception as error:
        raise _failed(policy, error) from error


def _failed(policy: Policy, error: Exception) -> PolicyFailed:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return PolicyFailed(
        f"{_name(policy)} raised {type(error).__name__}: {' '.join(str(error).split())} "
        f"({last.filename}, line {last.lineno}, in {last.name})"
    )


def _require_terms(schedule: Schedule, machine: Machine, budget: int | None) -> None:
    """Refuse a schedule that was made for other bytes than it was asked for."""
    limit = machine.device_nbytes if budget is None else budget
    asked = (budget, limit, machine.capacities)
    made = (schedule.budget_nbytes, schedule.limit_nbytes, dict(schedule.tiers))
    if made != asked:
        raise InvalidSchedule(
            f"it is for budget, limit and tiers {made}; asked for were {asked}: take them from "
            "the arguments, or use superneurons.schedules.Builder"
        )


def _require_facts(policy: Policy, trace: Trace) -> None:
    missing = needs_of(policy) - trace.has
    if missing:
        raise InvalidInput(
            f"{_name(policy)} needs {', '.join(sorted(map(str, missing)))}; "
            f"trace {trace.name!r} has {', '.join(sorted(trace.has))}"
        )


def _require_room(trace: Trace, machine: Machine, budget: int | None) -> None:
    facts = trace.facts
    if budget is not None and budget > machine.device_nbytes:
        raise InvalidInput(
            f"a budget of {format_bytes(budget)} is more than {machine.name!r} has, "
            f"{format_bytes(machine.device_nbytes)}; for a larger device write "
            f"{machine.name.partition(':')[0]}:device_memory={budget}B"
        )
    if budget is not None and budget < facts.floor_nbytes:
        who = "what is there at the start"
        if facts.floor_op >= 0:
            name = facts.op_names[facts.floor_op]
            who = f"operation {name!r} alone, with what is always there,"
        raise DoesNotFit(
            f"no policy fits {trace.name!r} into {format_bytes(budget)}: {who} needs "
            f"{format_bytes(facts.floor_nbytes)}, {facts.floor_nbytes - budget} bytes more"
        )
