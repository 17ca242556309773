"""Operations of forward run again in one step: from what is saved, from parameters and buffers,
and from what was run again before.

What they make belongs to the step until the schedule lets go of it, or until it is, whole, what an
entry is waiting for. Nothing that the program may see is ever written.
"""

from collections.abc import Callable, MutableMapping, Sequence
from typing import Any

import torch

from ..errors import Unsupported
from .backend import Backend, DrawState
from .code import Captured, Code
from .entries import AWAY, Entry, looking
from .lasting import Lasting, changed
from .private import BelowAutograd
from .recipes import Recipe, Recipes
from .witness import Witness

Again = tuple[torch.Tensor, int]
"""A tensor that was computed again, and the version of its storage."""


class MissingSource(Exception):
    """What an operation starts from is not there: a step that is not the recorded one."""


class Replay:
    """Runs operations again in one step by *recipes*. *entries* gives a storage's entry.

    A *witness* looks on in forward, unless nothing may change from step to step. *made* is what was
    run again, by storage, and *lasting* are the parameters and buffers.
    """

    def __init__(
        self,
        recipes: Recipes,
        backend: Backend,
        entries: Callable[[int], Entry | None],
        lose: Callable[[str], None],
        *,
        constant: bool,
    ) -> None:
        self.made: dict[int, Again] = {}
        self.recipes = recipes
        self._recipe_of: dict[int, Recipe] = {}  # of what is dropped, by storage
        self._backend = backend
        self._entries = entries
        self.lasting = Lasting(recipes)
        self.witness: Witness | None = None
        if recipes.codes and not (constant and not recipes.draws):
            self.witness = Witness(recipes, self.lasting.storages, backend.draw_state, lose)

    def knows(self, s: int, storage: torch.UntypedStorage) -> bool:
        """Whether a saved storage is the one that operations of this step were seen to take."""
        return self.witness is None or self.witness.is_it(s, storage)

    def prepared(self, entry: Entry) -> bool:
        """Let an entry own all that it is computed again from; return whether it can be."""
        recipe = self.recipes.of.get(entry.number)
        if recipe is None:
            return False
        found = {s: self._entries(s) for s in recipe.leaves}
        gone: frozenset[int] = frozenset()
        while lost := {s for s, leaf in found.items() if leaf is None}:
            gone |= lost  # the graph has let go of them, so it starts from what they are made of
            recipe = self.recipes.deeper(entry.number, gone)
            if recipe is None:
                return False
            found = {s: self._entries(s) for s in recipe.leaves}
        if self.witness is not None:
            captured = self.witness.captured
            for op in recipe.ops:
                if op not in captured:
                    return False
        self._recipe_of[entry.number] = recipe
        entry.owned = tuple(leaf for leaf in found.values() if leaf is not None)
        return True

    def run(self, ops: Sequence[int], place: int) -> list[int]:
        """Run operations again at a place, as the schedule says, ~s lets go of what was run again
        of storage s; return those operations for which everything was there."""
        done, death = [], self.recipes.facts.death
        made, entries = self.made, self._entries
        self.lasting.doubt()
        codes = self.recipes.codes
        with BelowAutograd():
            for op in ops:
                if op < 0:
                    self.let_go(~op)
                    continue
                code = codes[op]
                try:
                    self._run(code, made, entries)
                except MissingSource:
                    continue  # so nobody asks for it, or it comes when it is asked for
                done.append(op)
                for s in code.whole:
                    if (entry := entries(s)) is not None:
                        # Once the graph has let go of it, entries that start from it may as well.
                        again = made.pop(s) if place < death[s] else made[s]
                        if entry.where is AWAY:
                            self._take(entry, again[0], code)
        return done

    def forget(self, s: int) -> None:
        """Forget what was run again."""
        self.made.pop(s, None)

    def let_go(self, s: int) -> None:
        """Give up a storage that the schedule frees. Its entry may live on, for others start from
        it, or for the graph is kept: then it comes back when it is asked for."""
        self.forget(s)
        entry = self._entries(s)
        if entry is None or entry.where is AWAY:
            return
        if entry.blocks or self.prepared(entry):
            entry.drop()

    def end(self) -> None:
        """Forget how the step was called: nothing will be computed again."""
        self.made.clear()
        if self.witness is not None:
            self.witness.captured.clear()

    def rebuild(self, entry: Entry, bring: Callable[[Entry], None]) -> list[Entry]:
        """Compute an entry that is nowhere, and first those that it starts from; *bring* fetches
        what is in a tier. Return those that have come back for it."""
        waiting, back = [entry], []
        while waiting:
            present = waiting[-1]
            if present.where is not AWAY:
                waiting.pop()
            elif present.blocks or present.reuse():
                bring(present)
                back.append(waiting.pop())
            elif away := [each for each in present.owned if each.where is AWAY]:
                waiting.extend(away)
            else:
                self._rebuild(present)
                back.append(present)
        return [each for each in back if each is not entry]

    def _rebuild(self, entry: Entry) -> None:
        recipe = self._recipe_of[entry.number]
        made: dict[int, Again] = {}
        owned = {each.number: each for each in entry.owned}
        code = None
        self.lasting.doubt()
        try:
            with BelowAutograd():
                for op, gone in zip(recipe.ops, recipe.gone, strict=True):
                    code = self.recipes.codes[op]
                    self._run(code, made, owned.get)
                    for s in gone:
                        made.pop(s, None)
        except MissingSource as error:
            raise changed(self.recipes.facts.names[entry.number], str(error)) from error
        assert code is not None
        self._take(entry, made[entry.number][0], code)

    def _take(self, entry: Entry, tensor: torch.Tensor, code: Code) -> None:
        if tensor.untyped_storage().nbytes() != entry.nbytes:
            name = self.recipes.facts.names[entry.number]
            raise changed(name, "it comes out in another size")
        entry.came_again(tensor)
        if entry.control is not None:
            there = torch.empty(0, dtype=torch.uint8, device=tensor.device)
            if not torch.equal(there.set_(entry.storage), entry.control):
                name = self.recipes.facts.names[entry.number]
                raise Unsupported(
                    f"{code.name!r}, run again, does not make what it made in forward: "
                    f"{name!r} is another"
                )

    def _run(
        self,
        code: Code,
        made: MutableMapping[int, Again],
        entries: Callable[[int], Entry | None],
    ) -> None:
        """Run one operation; what it makes is in *made* then."""
        given, kwargs, state = self._call(code)
        args = given.copy()
        if code.named:
            kwargs = dict(kwargs)
        for key in code.lists:
            where: Any = args if isinstance(key, int) else kwargs
            where[key] = where[key].copy()
        for key, inner, s, at, view, same in code.gaps:
            again = made.get(s)
            if again is None or again[1] != at:
                tensor = looking(self._source(s, at, entries), view)
            elif same:
                tensor = again[0]
            else:
                tensor = looking(again[0], view)
            where = args if key.__class__ is int else kwargs
            if inner < 0:
                where[key] = tensor
            else:
                where[key][inner] = tensor
        for (key, _), scratch in code.scratch:
            if scratch is not None:
                where = args if isinstance(key, int) else kwargs
                where[key] = torch.zeros(
                    scratch.shape, dtype=scratch.dtype, device=self._backend.device
                )
        for s, at in code.written:
            if s not in made or made[s][1] != at - 1:
                raise MissingSource(f"{code.name!r} would write what is not its own")
        if state is None:
            result = code.kernel(*args, **kwargs)
        else:
            result = self._draw(code, args, kwargs, state)
        for inner, s, at in code.makes:
            if inner == -2:
                made[s] = made[s][0], at
            else:
                made[s] = result if inner < 0 else result[inner], at

    def _draw(self, code: Code, args: list[Any], kwargs: dict[str, Any], state: DrawState) -> Any:
        """Run an operation with the random numbers that it drew in forward."""
        present = self._backend.draw_state()
        try:
            self._backend.draw_from(state)
            return code.kernel(*args, **kwargs)
        finally:
            self._backend.draw_from(present)

    def _call(self, code: Code) -> Captured:
        if self.witness is None:
            return code.recorded
        captured = self.witness.captured.get(code.op)
        if captured is None:
            raise MissingSource(f"{code.name!r} has not run in this step")
        return captured

    def _source(self, s: int, at: int, entries: Callable[[int], Entry | None]) -> torch.Tensor:
        """Return a tensor on what an operation starts from, *at* the version that it needs."""
        if s in self.recipes.lasting:
            return self.lasting.tensor(s)
        entry = entries(s)
        if entry is None or entry.where is AWAY or self.recipes.repeatable.saved.get(s) != at:
            raise MissingSource(f"{self.recipes.facts.names[s]!r} is not there")
        if not entry.intact:
            raise changed(self.recipes.facts.names[s], "it was written to since it was saved")
        return entry.tensor()
