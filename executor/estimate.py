"""Estimate: follow a training step without a GPU, without its memory, at any size of model."""

import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import Unsupported
from ..traces import Trace
from .cuda_operators import CUDNN_NAMES, KEEP_ALL, CudaOperators
from .in_place import ModeRules
from .log import Log
from .operators import Operator, operator
from .private import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensors,
    Observer,
    Overload,
    address,
)
from .recorder import Recorder
from .tensors import tensors_of


def estimate(build: Callable[[], Callable[[], object]], name: str) -> Trace:
    """Return the trace of the step that *build* returns, as it would be on CUDA, as far as known.

    Model and inputs are built and run on the CPU under fake tensors, which have shapes and no
    bytes; `executor/cuda_operators.py` says what is put in place of the CPU's operators. A CUDA
    device that the program names is taken for the one that is estimated. A value that the step
    reads (`loss.item()`) is 0. The trace has no times and no workspaces, and its notes say that it
    is an estimate. Raises Unsupported for a step that cannot be followed so.
    """
    log = _CudaLog()
    with FakeTensors(), _Values(), _fake_modules(), _no_cuda_autocast():
        try:
            with CudaOperators():
                step = build()
            recorder = Recorder(name, log.device, log, _Mode)
            while not recorder.done:
                with _cuda_optimizers(log), CudaOperators(), recorder.step():
                    step()
            trace = recorder.trace()
        except AssertionError as error:
            if "convert all Tensors to FakeTensors" not in str(error):
                raise
            raise Unsupported(
                "the step uses tensors that were made before the function was called; an estimate "
                "has no use for their bytes: build model and inputs inside of the function"
            ) from None
    notes = trace.notes | {
        "made": "estimated without a GPU: operators of the CPU under fake tensors, some replaced "
        "by CUDA's (executor/cuda_operators.py); no workspaces",
    }
    return msgspec.structs.replace(trace, notes=notes)


class _CudaLog(Log):
    """A log of the CPU's operators under the names of CUDA's, without what stays on the host."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"), rules=ModeRules())
        self._on_host: set[int] = set()  # by address, while alive

    def observe(self, func: Overload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """See an operator: run it, and log what it did unless the host does it."""
        if func is torch.ops.aten.lift_fresh.default and args[0].dim() == 0:
            self.leave_on_host(args[0])  # torch.tensor(1.0)
        tensors = () if self.quiet else [tensor for _, tensor in tensors_of(args, kwargs)]
        if tensors and all(self._hosted(tensor) for tensor in tensors):
            result = func(*args, **kwargs)  # what is made of the host's numbers is the host's
            if isinstance(result, torch.Tensor) and result.dim() == 0:
                self.leave_on_host(result)
            return result
        result = super().observe(func, args, kwargs)
        if func.overloadpacket.__name__ in KEEP_ALL and result.dim() == 0 and not self.quiet:
            life = self.book.find(result)
            if life is not None:
                shape = torch.broadcast_shapes(args[0].shape, args[1].shape)
                more = shape.numel() * result.element_size() - life.nbytes
                life.nbytes += more
                self.operations[-1].moved_nbytes += more
        return result

    def leave_on_host(self, tensor: torch.Tensor) -> None:
        """Take a number as one that a GPU never sees."""
        storage = tensor.untyped_storage()
        where = address(storage)
        if where not in self._on_host:
            self._on_host.add(where)
            weakref.finalize(storage, self._on_host.discard, where)

    def _hosted(self, tensor: torch.Tensor) -> bool:
        return tensor.dim() == 0 and address(tensor.untyped_storage()) in self._on_host

    def here(self, tensor: torch.Tensor) -> bool:
        """Return whether a tensor would be on the GPU."""
        return super().here(tensor) and not self._hosted(tensor)

    def describe(self, func: Overload) -> Operator:
        """Return what is known of an operator, under the name of CUDA's."""
        return operator(func, CUDNN_NAMES.get(func.overloadpacket.__name__, ""))


class _Mode(TorchDispatchMode):
    """Shows an observer the operators as a dispatch mode, for fake tensors are one themselves."""

    def __init__(self, observer: Observer) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._observer = observer

    def __torch_dispatch__(
        self, func: Overload, types: object, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return self._observer(func, args, kwargs or {})


class _Values(TorchDispatchMode):
    """Gives 0 where a step reads a value that a fake tensor does not have."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Overload, types: object, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        try:
            return func(*args, **(kwargs or {}))
        except (DataDependentOutputException, DynamicOutputShapeException):
            if func is torch.ops.aten._local_scalar_dense.default:
                dtype = args[0].dtype
                return False if dtype == torch.bool else 0.0 if dtype.is_floating_point else 0
            raise Unsupported(
                f"the step depends on values ({func}), which an estimate does not have; record it "
                "on a GPU"
            ) from None


@contextmanager
def _cuda_optimizers(log: _CudaLog) -> Iterator[None]:
    """Let optimizers do what they do on CUDA if left to choose: `foreach`, counters on the host."""

    def choose(optimizer: torch.optim.Optimizer, *_: object) -> None:
        for group in optimizer.param_groups:
            one_by_one = isinstance(group.get("lr"), torch.Tensor) and not group.get("capturable")
            if group.get("foreach", False) is None and not group.get("fused") and not one_by_one:
                group["foreach"] = True
            if group.get("capturable") or group.get("fused"):
                continue
            for parameter in group["params"]:
                for counter in optimizer.state.get(parameter, {}).values():
                    if isinstance(counter, torch.Tensor) and counter.dim() == 0:
                        log.leave_on_host(counter)

    hook = register_optimizer_step_pre_hook(choose)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def _fake_modules() -> Iterator[None]:
    """Let models be moved and copied: torch would swap fake parameters, which they do not bear."""

    def give(parameter: torch.Tensor, moved: torch.Tensor) -> None:
        parameter.data = moved.data

    plain = torch.utils.swap_tensors
    torch.utils.swap_tensors = give
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Accessing the data pointer of FakeTensor")
            yield
    finally:
        torch.utils.swap_tensors = plain


@contextmanager
def _no_cuda_autocast() -> Iterator[None]:
    """Refuse autocast and gradient scaling for CUDA, whose lists of operators the CPU has not."""

    def refusing(kind: type, plain: Callable[..., None]) -> Callable[..., None]:
        def init(self: object, *args: Any, **kwargs: Any) -> None:
            default = "" if kind is torch.amp.autocast else "cuda"
            device = kwargs.get("device_type", kwargs.get("device", args[0] if args else default))
            if str(device).partition(":")[0] == "cuda" and kwargs.get("enabled", True):
                raise Unsupported(
                    f"the step uses {kind.__name__} for CUDA, which an estimate cannot follow; "
                    "record it on a GPU, or take the device from a tensor: "
                    f"torch.{kind.__name__}(device_type=x.device.type, ...)"
                    if kind is torch.amp.autocast
                    else f"the step uses {kind.__name__} for CUDA, which an estimate cannot "
                    "follow; record it on a GPU, or leave it out"
                )
            plain(self, *args, **kwargs)

        return init

    kinds: tuple[Any, ...] = (torch.amp.autocast, torch.amp.GradScaler)
    plain = [kind.__init__ for kind in kinds]
    try:
        for kind, init in zip(kinds, plain, strict=True):
            kind.__init__ = refusing(kind, init)
        yield
    finally:
        for kind, init in zip(kinds, plain, strict=True):
            kind.__init__ = init
