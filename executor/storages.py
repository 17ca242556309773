"""The book of storages: which one a tensor is of, when it was born, and when it died.

A storage's Python object lives exactly as long as its bytes, for torch keeps it as long as anything
in C++ holds the storage. So a weak reference tells the death when it happens, and nothing has to
be asked again and again.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from .private import address, holders


class Life:
    """One storage from birth to death; both are places, the number of operations logged before.

    *born* is -1 for what was there before the log began, and *dead* -1 while it lives. *version*
    counts the writes that were logged. *keeps* is how many saved-tensor handles hold it. *data* is
    the address of its bytes on a GPU, 0 elsewhere.
    """

    __slots__ = (
        "address",
        "born",
        "data",
        "dead",
        "keeps",
        "nbytes",
        "number",
        "released",
        "version",
    )

    def __init__(self, number: int, storage: torch.UntypedStorage, born: int) -> None:
        self.number = number
        self.address = address(storage)
        self.data = storage.data_ptr() if storage.device.type == "cuda" else 0
        self.nbytes = storage.nbytes()
        self.born = born
        self.dead = -1
        self.released = -1
        self.version = 0
        self.keeps = 0

    @property
    def held(self) -> bool:
        """Whether anybody but saved tensors holds it. Only while it lives.

        One of the holders is the storage's Python object, which exists since it was entered.
        """
        return self.dead < 0 and holders(self.address) - 1 > self.keeps


@contextmanager
def resizing_told(tell: Callable[[str], None]) -> Iterator[None]:
    """Tell of what no operator tells of: a storage that is given another size by hand."""
    plain = torch.UntypedStorage.resize_

    def resize(storage: torch.UntypedStorage, nbytes: int) -> object:
        tell(
            f"the step resizes a storage of {storage.nbytes()} bytes to {nbytes} by hand, which a "
            "trace cannot say"
        )
        return plain(storage, nbytes)

    torch.UntypedStorage.resize_ = resize  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        torch.UntypedStorage.resize_ = plain  # type: ignore[method-assign]


class Book:
    """All storages that have been seen, by number. *clock* says the present place.

    *alive_nbytes* are those that live, together.
    """

    def __init__(self, clock: Callable[[], int]) -> None:
        self.lives: list[Life] = []
        self.alive_nbytes = 0
        self._clock = clock
        self._closed = False
        self._at: dict[int, Life] = {}  # by address, while alive
        self._watches: dict[int, weakref.ref[torch.UntypedStorage]] = {}  # by number
        # By address: a life that has gone on in another storage may have left one that lives.
        self._followed: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def find(self, tensor: torch.Tensor) -> Life | None:
        """Return the life of a tensor's storage, None if it has none or has not been entered."""
        if tensor.layout is not torch.strided:
            return None
        return self._at.get(address(tensor.untyped_storage()))

    def enter(self, tensor: torch.Tensor, born: int) -> Life:
        """Begin the life of a tensor's storage, born at a place (-1: before the log)."""
        return self._begin(tensor.untyped_storage(), born)

    def adopt(self, life: Life, storage: torch.UntypedStorage) -> None:
        """Let a life go on in another storage, which has got the bytes of its first one."""
        life.address = address(storage)
        life.dead = -1
        self._follow(life, storage)

    def _begin(self, storage: torch.UntypedStorage, born: int) -> Life:
        life = Life(len(self.lives), storage, born)
        self.lives.append(life)
        self._follow(life, storage)
        return life

    def _follow(self, life: Life, storage: torch.UntypedStorage) -> None:
        """Note when a storage dies, and with it the life that it has."""
        where = life.address
        self._at[where] = life
        self.alive_nbytes += life.nbytes

        def die(watch: object) -> None:
            del self._at[where], self._followed[where]
            self.alive_nbytes -= life.nbytes
            present = self._watches.get(life.number)
            if present is watch:
                del self._watches[life.number]
            if present in (watch, None) and not self._closed:
                life.dead = self._clock()

        self._watches[life.number] = self._followed[where] = weakref.ref(storage, die)

    def nbytes(self, life: Life) -> int:
        """Return the present size of a storage that lives."""
        watch = self._watches.get(life.number)
        storage = None if watch is None else watch()
        return life.nbytes if storage is None else storage.nbytes()

    def renew(self, life: Life, born: int) -> Life:
        """End a life whose storage has been given another size, and begin the next one of it."""
        storage = self._watches.pop(life.number)()
        assert storage is not None
        life.dead = born
        self.alive_nbytes -= life.nbytes
        return self._begin(storage, born)

    def close(self) -> None:
        """Write no more deaths: the last step is over."""
        self._closed = True

    def alive(self) -> list[Life]:
        """Return those that live, oldest first."""
        return [life for life in self.lives if life.dead < 0]
