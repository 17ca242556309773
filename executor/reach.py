"""How far into forward a schedule needs hooks, and which of them fire after that.

Each save costs the host two calls of Python, which is most of what a step by a schedule costs where
launches take all the time. Hooks that are taken away in forward spare those of all later saves:
autograd then keeps them as it always does, and looks after them itself. What was saved before comes
back through its hook as ever.
"""

from collections.abc import Sequence


class Reach:
    """The hooks of one plan: *last* is the pack after which none is needed for what is saved later,
    and *following* tells for each hook which one fires next if they end there.

    *sequence* are the hooks in order, n for the pack of save n and ~n for an unpack; *busy* says at
    which of them something is due or compared.
    """

    def __init__(self, sequence: Sequence[int], busy: Sequence[bool]) -> None:
        pack_of: dict[int, int] = {}
        self.last = 0
        for at, (code, needed) in enumerate(zip(sequence, busy, strict=True)):
            if code >= 0:
                pack_of[code] = at
            if needed:
                self.last = max(self.last, at if code >= 0 else pack_of[~code])
        self.following: list[int] = [len(sequence)] * len(sequence)
        ahead = len(sequence)
        for at in reversed(range(len(sequence))):
            self.following[at] = ahead
            code = sequence[at]
            if at <= self.last or (code < 0 and pack_of[~code] <= self.last):
                ahead = at
