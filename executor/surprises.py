"""Steps of one signature that are none that is known: when another one is worth recording.

What surprises cannot be recorded any more: it has begun by a schedule. So the steps after it are,
until one is found that is not known. That takes two where two kinds come in strict turns.
"""

from collections.abc import Callable
from typing import Final

from .plan import Look

HUNTS: Final = 2, 8
"""How many steps in a row are recorded after a surprise, to find one that is not known: first where
two kinds come in turns, then every so-manieth. Both in vain, there are no more."""

MOST: Final = 8
"""After how many surprises nothing is recorded again."""

FOR_GOOD: Final = 4
"""After how many surprises in a row something is all the same, once: steps have become others."""


class Surprises:
    """Counts surprises, and what recordings after them have found; *say* tells the user."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say: Final = say
        self._count = 0
        self._in_a_row = 0
        self._vain = 0  # hunts that have found nothing
        self._left = 0  # steps that the one under way may still record
        self._met: set[Look] = set()  # the known kinds that it has come upon

    def none(self) -> None:
        """A step was as recorded."""
        self._in_a_row = 0

    def another(self, why: str) -> bool:
        """A step was none that is known: return whether to record the next."""
        self._count += 1
        self._in_a_row += 1
        if self._count == 1:
            self._say(f"the step was not the one that was recorded ({why}): everything was kept")
        if self._in_a_row != FOR_GOOD:
            if self._count > MOST:
                self._say(
                    "steps go on to differ from those that were recorded; each that does keeps "
                    "everything from there on, and none is recorded any more; where there are a "
                    "few kinds of steps, give step() a word for each"
                )
                return False
            if self._vain == len(HUNTS):
                return False
        self._left = HUNTS[min(self._vain, len(HUNTS) - 1)]
        return True

    def met(self, look: Look) -> bool:
        """A step was recorded that is known: return whether to record the next, too."""
        if not self._left:
            return False
        self._met.add(look)
        self._left -= 1
        if not self._left:
            self._vain += 1
            self.over()
            if self._vain == len(HUNTS):
                self._give_up()
        return self._left > 0

    def rivals(self, look: Look) -> bool:
        """A step was recorded that begins like a known one and is another: return whether that one
        goes on to come. Then neither can have a schedule but the one that has it."""
        rivals = look in self._met
        if rivals:
            self._vain = len(HUNTS)
            self._give_up()
        self.over()
        return rivals

    def over(self) -> None:
        """Nothing is looked for any more."""
        self._left = 0
        self._met.clear()

    def _give_up(self) -> None:
        self._say(
            "steps of several kinds come in turns; give step() the batch, or a word for each kind, "
            "so that each kind gets a schedule of its own"
        )
