"""What is due at a hook: actions, which the plan makes of a schedule's instructions."""

from collections.abc import Sequence
from enum import Enum
from typing import Final

from msgspec import Struct


class What(Enum):
    """What an action does with a storage."""

    COPY = "copy"
    DROP = "drop"
    LOOK = "look"  # whether what was dropped is really gone
    FETCH = "fetch"
    DISCARD = "discard"
    RELEASE = "release"  # what was held for longer than autograd holds it
    RERUN = "rerun"


# Asked for at each hook, and in a tenth of the time that an enumeration takes to find them.
COPY: Final = What.COPY
DROP: Final = What.DROP
LOOK: Final = What.LOOK
FETCH: Final = What.FETCH
DISCARD: Final = What.DISCARD
RERUN: Final = What.RERUN


SMALL_NBYTES: Final = 1 << 20
"""What is smaller is copied together with what goes the same way at the same hook: a copy of
64 KiB costs nearly as much as one of a megabyte, and each one's events as much again."""


class Action(Struct, frozen=True):
    """One thing that is due, with one storage or with several small ones; or *ops* that are run
    again, each for one of the storages: ~s among them lets go of what was run again of s."""

    what: What
    storages: tuple[int, ...]
    tier: str = ""
    ops: tuple[int, ...] = ()


def together(actions: Sequence[Action], nbytes: Sequence[int]) -> tuple[Action, ...]:
    """Join copies of small storages that go the same way, one after the other, operations
    that run again in a row, and what is dropped or looked for in a row."""
    joined: list[Action] = []
    for action in actions:
        last = joined[-1] if joined else None
        if (
            last is not None
            and action.what in (What.COPY, What.FETCH)
            and (last.what, last.tier) == (action.what, action.tier)
            and all(nbytes[s] < SMALL_NBYTES for s in last.storages + action.storages)
        ):
            joined[-1] = Action(last.what, last.storages + action.storages, last.tier)
        elif (
            last is not None and last.what is action.what and action.what in (What.DROP, What.LOOK)
        ):
            joined[-1] = Action(action.what, last.storages + action.storages)
        elif last is not None and last.what is action.what is What.RERUN:
            joined[-1] = Action(
                What.RERUN, last.storages + action.storages, ops=last.ops + action.ops
            )
        else:
            joined.append(action)
    return tuple(joined)
