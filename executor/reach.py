"""How far into forward a schedule needs hooks, and which of them fire after that.

Each save costs the host two calls of Python, which is most of what a step by a schedule costs where
launches take all the time. Hooks that are taken away in forward spare those of all later saves:
autograd then keeps them as it always does, and looks after them itself. What was saved before comes
back through its hook as ever.
"""

from collections.abc import Sequence


class Reach:
    """How far hooks are needed: *last* is the pack after which none is, for what is saved later.

    *sequence* are all hooks in order, n for the pack of save n and ~n for an unpack; *busy* says at
    which of them something is due or compared.
    """

    def __init__(self, sequence: Sequence[int], busy: Sequence[bool]) -> None:
        self._sequence = sequence
        self._pack_of = {code: at for at, code in enumerate(sequence) if code >= 0}
        self.last = max(
            (
                at if code >= 0 else self._pack_of[~code]
                for at, (code, needed) in enumerate(zip(sequence, busy, strict=True))
                if needed
            ),
            default=0,
        )

    def following(self, end: int) -> list[int]:
        """Return for each hook which one fires next, if none is called for what is saved after the
        hook numbered *end*."""
        ahead = len(self._sequence)
        found = [ahead] * ahead
        for at in reversed(range(len(found))):
            found[at] = ahead
            code = self._sequence[at]
            if (at if code >= 0 else self._pack_of[~code]) <= end:
                ahead = at
        return found
