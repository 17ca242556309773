"""The witness of an executed step: it sees forward go by, and knows whether it is the recorded one.

What a schedule computes again it computes as forward did *in this step*: with the numbers that were
passed and the random numbers that were drawn. So somebody has to look on. The witness compares the
operators with those that were recorded, in order, and for each that may run again its tensors: of
which storage they are, and how they look at it. It is done with the last of them.
"""

import weakref
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch

from .backend import DrawState
from .code import Captured, Code
from .log import trains
from .private import Overload, backward_pass, kernel_of, version_of
from .recipes import Recipes


class Witness:
    """Looks on while a step's forward runs. *captured* is by operation what it was called with, and
    *noted* by storage the one that it is in this step; *lose* is told why the step is another."""

    def __init__(
        self,
        recipes: Recipes,
        noted: Mapping[int, weakref.ref[torch.UntypedStorage]],
        draw_state: Callable[[], DrawState],
        lose: Callable[[str], None],
    ) -> None:
        self.captured: dict[int, Captured] = {}
        self.noted = dict(noted)
        self.quiet = False
        self.blind = False
        self.done = not recipes.watched
        self.at = 0
        self._expected = recipes.expected
        self._last = len(recipes.expected) - 2
        self._draw_state = draw_state
        self._lose = lose

    def miss(self) -> None:
        """Say that it has not seen the beginning of the step."""
        self.blind = self.done = True

    def observe(self, func: Overload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """See an operator, and run it."""
        if self.done or self.quiet or backward_pass() >= 0:
            return kernel_of(func)(*args, **kwargs)
        recorded, kernel, found = self._expected[self.at]
        if found is None and func is recorded:  # as most are
            self.at += 1
            return kernel(*args, **kwargs)
        if not self.before(func, args, kwargs):
            return kernel_of(func)(*args, **kwargs)
        result = kernel(*args, **kwargs)
        self.after(result)
        return result

    def before(self, func: Overload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """See an operator that is about to run; return whether its result is to be seen, too."""
        if self.done or self.quiet or backward_pass() >= 0:
            return False
        at = self.at
        recorded, _, found = self._expected[at]
        if func is not recorded:
            if func.namespace == "prim":
                return False
            self.done = True
            if recorded is None:
                self._lose(f"operator {at - 1} of forward has failed")
            else:
                self._lose(f"operator {at} of forward is {func}; recorded was {recorded}")
            return False
        self.at = at + 1
        if found is None:
            return False
        code = found[0]
        if code is None:
            return True
        if code.fixed:
            self.captured[code.op] = code.recorded
            return True
        state = self._draw_state() if code.random else None
        captured = self._capture(code, args, kwargs, state)
        if captured is None:
            self.done = True
            self._lose(f"{code.name!r} is called with other tensors than recorded")
            return False
        self.captured[code.op] = captured
        return True

    def after(self, result: Any) -> None:
        """See the result of the operator that was seen last."""
        if self.done:
            return
        at = self.at - 1
        _, _, found = self._expected[at]
        assert found is not None
        code, results = found
        noted = self.noted
        given = [noted[proof[2]]() for proof in code.proofs] if results and code is not None else ()
        for inner, s, shape, stride in results:
            tensor = result if inner < 0 else result[inner]
            storage = tensor.untyped_storage()
            if (
                tensor.shape != shape
                or tensor.stride() != stride
                or storage in given  # it is a view of what it was given
            ):
                self.done = True
                self._lose(f"operator {at} of forward makes another tensor than recorded")
                return
            noted[s] = weakref.ref(storage)
        if at == self._last:
            self.done = True

    def is_it(self, s: int, storage: torch.UntypedStorage) -> bool:
        """Whether a storage is that of the recorded step. One that has not seen the beginning lets
        everything pass: nothing is dropped then."""
        if self.blind:
            return True
        watch = self.noted.get(s)
        return watch is not None and watch() is storage

    def _capture(
        self,
        code: Code,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        state: DrawState,
    ) -> Captured | None:
        """Return what an operation is called with; None if its tensors are not those recorded."""
        stripped, named = list(args), dict(kwargs) if kwargs else kwargs
        noted = self.noted
        if code.normalizes and trains(args, kwargs) != code.trains:
            return None
        try:
            for key in code.lists:
                where: Any = stripped if isinstance(key, int) else named
                where[key] = list(where[key])
            for place, inner, s, dtype, shape, stride, offset, counter in code.proofs:
                key = place
                where = stripped if key.__class__ is int else named
                if inner >= 0:
                    where = where[key]
                    key = inner
                tensor = where[key]
                where[key] = None
                if (
                    noted[s]() is not tensor.untyped_storage()
                    or tensor.shape != shape
                    or tensor.dtype is not dtype
                    or tensor.stride() != stride
                    or tensor.storage_offset() != offset
                    or (counter >= 0 and version_of(tensor) != counter)
                ):
                    return None
            for (key, _), _ in code.scratch:
                where = stripped if isinstance(key, int) else named
                where[key] = None
            for i in code.absent:
                if i < len(stripped) and stripped[i] is not None:
                    return None
            count = len(code.recorded[0])
            if len(stripped) > count and any(isinstance(each, UNSEEN) for each in stripped[count:]):
                return None  # what was not given then is left out, not None
        except (KeyError, IndexError, AttributeError, TypeError):
            return None
        for key in code.lists:
            where = stripped if isinstance(key, int) else named
            if any(isinstance(each, torch.Tensor) for each in where[key]):
                return None
        if named and any(isinstance(each, UNSEEN) for each in named.values()):
            return None
        return stripped, named, state


UNSEEN: Final = (torch.Tensor, torch.Generator)
"""What an operation may be given that nobody can give it again as it was."""
