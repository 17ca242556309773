"""The log of training steps: every operation as it was dispatched, and the storages it touched.

The log is shown the operations below autograd, with composite functions resolved. What only makes
another view of the same bytes is no operation here.
"""

import weakref
from typing import Any, Final, Protocol

import torch

from ..errors import Unsupported
from .in_place import PlainRules
from .logged import Access, Logged
from .operators import Operator, draws, operator
from .precision import precision_of
from .private import Overload, number_of, running_node, sequence_number
from .storages import Book, Life
from .tensors import each_of, extent, next_call, tensors_of


class Meter(Protocol):
    """Measures the bytes that an operation takes inside itself.

    *counted* is the number of allocations and frees there had been by the last look.
    """

    counted: int

    def before(self) -> None:
        """Begin: right before an operation runs."""
        ...

    def after(self, fresh_nbytes: int) -> int:
        """Return the most bytes taken meanwhile beyond *fresh_nbytes*, those of its results."""
        ...


class Log:
    """Logs what it is shown of *device*, one step after the other.

    What has no bytes that a trace could hold raises Unsupported. If the log is *lenient*, it says
    so in *problem* instead, and logs nothing any more.
    """

    def __init__(
        self,
        device: torch.device,
        meter: Meter | None = None,
        rules: PlainRules | None = None,
        *,
        lenient: bool = False,
    ) -> None:
        self.device: Final = device
        self.problem = ""
        self.operations: list[Logged] = []
        self.book: Final = Book(self.place)
        self.quiet = False  # what the recorder itself does is not logged
        self.module = ""  # the path of the module that runs in forward
        self.parameters: list[weakref.ref[torch.Tensor]] = []  # as they are come upon
        self.unreleased: list[Life] = []  # saved storages that the program still holds
        self._modules: dict[int, str] = {}  # by sequence number
        self._meter = meter
        self._lenient = lenient
        self.rules = rules or PlainRules()
        self.dispatched = 0
        self.calls = 0  # a digest of all calls so far

    def place(self) -> int:
        """Return the present place: how many operations have been logged."""
        return len(self.operations)

    def here(self, tensor: torch.Tensor) -> bool:
        """Return whether a tensor is on the device whose bytes are recorded."""
        return tensor.device == self.device

    def describe(self, func: Overload) -> Operator:
        """Return what is known of an operator."""
        return operator(func)

    def poll(self) -> None:
        """Note for each saved storage whether the program has let go of it by this place."""
        still = []
        for life in self.unreleased:
            if life.held:
                still.append(life)
            elif life.released < 0:
                life.released = len(self.operations)
        self.unreleased = still

    def observe(self, func: Overload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """See an operator: run it, and log what it did."""
        if self.quiet or self.problem or func.namespace == "prim":
            return func(*args, **kwargs)  # asking a fake tensor for its device is a prim
        self.poll()
        what = self.describe(func)
        logged = Logged(what)
        logged.dispatch = self.dispatched
        self.dispatched += 1
        self.calls = next_call(self.calls, func, args, kwargs)
        touched: dict[int, int] = {}
        writes = self._arguments(logged, args, kwargs, touched)
        if writes is None:
            return func(*args, **kwargs)
        counted = 0
        if self._meter is not None:
            self._meter.before()
            counted = self._meter.counted
        result = func(*args, **kwargs)
        fresh_nbytes = self._results(logged, result, touched)
        if fresh_nbytes is None:
            return result
        logged.waits = bool(logged.reads) and (
            what.waits or self._leaves(what, args, kwargs, result)
        )
        if not (logged.fresh or writes or logged.waits):
            return result  # a view, or nothing on this device
        if self._meter is not None:
            logged.inside_nbytes = self._meter.after(fresh_nbytes)
            logged.counted = counted, self._meter.counted
        self._place_in_graph(logged)
        logged.random = draws(what, args, kwargs)
        logged.moved_nbytes += sum(touched.values())
        if what.flops is not None:
            logged.flops = int(what.flops(*args, **kwargs, out_val=result))
            if isinstance(result, torch.Tensor) and result.is_complex():
                logged.flops *= 4  # a complex product and sum are eight, where real ones are two
            logged.precision = precision_of(what, args)
        self.rules.mark(self, logged, args, result)
        if not self._follow_sizes(logged):
            return result
        for life in logged.overwrites:
            life.version += 1
        for life in logged.updates:
            life.version += 1
        self.operations.append(logged)
        return result

    def _arguments(
        self,
        logged: Logged,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        touched: dict[int, int],
    ) -> bool | None:
        """Note what the operation reads and writes; return whether it writes anything here, None if
        it cannot be logged."""
        what, writes = logged.operator, False
        training = bool(what.passing) and trains(args, kwargs)
        for key, tensor in tensors_of(args, kwargs):
            if not self.here(tensor):
                continue
            if self.lacks_bytes(tensor, what):
                return None
            if what.rebinds and key in what.written:
                continue
            if key not in what.written and self._is_number(tensor):
                continue
            if what.name == "lift_fresh" and self.book.find(tensor) is None:
                continue  # torch.tensor(...): it is made here
            life = self.book.find(tensor) or self._enter_found(tensor)
            if what.shapes_only:
                continue
            offset, nbytes = extent(tensor)
            touched[life.number] = max(touched.get(life.number, 0), nbytes)
            if key in what.written:
                if life not in logged.overwrites:
                    logged.overwrites.append(life)
                if not what.fills:
                    logged.moved_nbytes += nbytes  # read before it is written
                writes = True
            elif key in what.passing:
                if training:
                    logged.updates.append(life)
                    writes = True
                else:
                    logged.reads.append(Access(life, life.version, offset, nbytes))
            else:
                logged.reads.append(Access(life, life.version, offset, nbytes))
        return writes

    def _results(self, logged: Logged, result: Any, touched: dict[int, int]) -> int | None:
        """Note the storages that the operation made; return their bytes, None if it cannot be
        logged."""
        total = 0
        place = len(self.operations)
        for tensor in each_of(result):
            if not self.here(tensor):
                continue
            if self.lacks_bytes(tensor, logged.operator):
                return None
            if self.book.find(tensor) is None and logged.operator.rebinds:
                self._enter_found(tensor)  # no operator makes a storage for it
            elif self.book.find(tensor) is None:
                life = self.book.enter(tensor, place)
                logged.fresh.append(life)
                touched[life.number] = life.nbytes
                total += life.nbytes
        return total

    def _leaves(
        self, what: Operator, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
    ) -> bool:
        """Return whether bytes go to the host, which waits for them."""
        if what.kind != "copy" or kwargs.get("non_blocking") or True in args[2:]:
            return False
        return any(tensor.device.type == "cpu" != self.device.type for tensor in each_of(result))

    def _follow_sizes(self, logged: Logged) -> bool:
        """Take an empty storage that an operation has filled for a new one; return whether there
        are no other sizes that change."""
        for life in list(logged.overwrites):
            nbytes = self.book.nbytes(life)
            if nbytes == life.nbytes:
                continue
            if life.nbytes:
                self.cannot(
                    f"{logged.operator.name} changes a storage of {life.nbytes} bytes to {nbytes}, "
                    "which a trace cannot say"
                )
                return False
            logged.overwrites.remove(life)
            logged.fresh.append(self.book.renew(life, len(self.operations)))
        return True

    def _place_in_graph(self, logged: Logged) -> None:
        """Note node and module: a backward operation's module is that of its forward."""
        if logged.backward:
            node = running_node()
            logged.node = -1 if node is None else number_of(node)
            logged.module = self._modules.get(logged.node, "")
        else:
            logged.node = sequence_number() - 1
            logged.module = self._modules.setdefault(logged.node, self.module)
            logged.module = self.module

    def maker(self, tensor: torch.Tensor) -> Logged | None:
        """Return the operation that made a tensor's storage, None if it was there before."""
        life = self.book.find(tensor)
        if life is None or not 0 <= life.born < len(self.operations):
            return None
        return self.operations[life.born]

    def _enter_found(self, tensor: torch.Tensor) -> Life:
        """Enter a storage that was there before; remember a parameter, for nobody else may."""
        if isinstance(tensor, torch.nn.Parameter):
            self.parameters.append(weakref.ref(tensor))
        return self.book.enter(tensor, -1)

    def _is_number(self, tensor: torch.Tensor) -> bool:
        """Return whether a tensor is a Python number on its way into an operator."""
        return (
            tensor.dim() == 0
            and tensor.device.type == "cpu"
            and tensor.dtype in (torch.float64, torch.int64, torch.bool)
            and self.book.find(tensor) is None
        )

    def lacks_bytes(self, tensor: torch.Tensor, what: Operator | None = None) -> bool:
        """Return whether a tensor has no plain bytes. Then the step cannot be recorded: an operator
        works on it, or autograd keeps it."""
        if tensor.is_quantized:
            why = f"a quantized tensor ({tensor.dtype})"
        elif tensor.layout is not torch.strided:
            why = f"a sparse tensor ({tensor.layout})"
        else:
            return False
        where = f" in module {self.module!r}" if self.module else ""
        does = "autograd keeps" if what is None else f"{what.name}{where} works on"
        self.cannot(f"{does} {why}, which a recording cannot tell apart into bytes")
        return True

    def cannot(self, why: str) -> None:
        """Say that the step cannot be recorded, and why."""
        if not self._lenient:
            raise Unsupported(f"{why}; record a step without it")
        self.problem = self.problem or why


def trains(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return whether a normalization is called in training: its one true or false argument."""
    # Not any(): forward is looked at operator by operator, and this for each normalization.
    for argument in args:
        if argument is True:
            return True
    return bool(kwargs) and any(argument is True for argument in kwargs.values())
