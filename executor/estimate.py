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
from .cuda_operators import CUDNN_NAMES, CudaOperators
from .log import Log, tensors_of
from .operators import Operator, operator
from .private import DataDependentOutputException, FakeTensorMode, Overload, address
from .recorder import Recorder


def estimate(build: Callable[[], Callable[[], object]], name: str) -> Trace:
    """Return the trace of the step that *build* returns, as it would be on CUDA, as far as known.

    Model and inputs are built and run on the CPU under fake tensors, which have shapes and no
    bytes; `executor/cuda_operators.py` says what is put in place of the CPU's operators. A value
    that the step reads (`loss.item()`) is 0. The trace has no times and no workspaces, and its
    notes say that it is an estimate. Raises Unsupported for a step that cannot be followed so.
    """
    log = _CudaLog()
    with FakeTensorMode(), _Values(), _no_cuda_autocast():
        step = build()
        recorder = Recorder(name, log.device, log)
        while not recorder.done:
            with _cuda_optimizers(log), CudaOperators(), recorder.step():
                step()
        trace = recorder.trace()
    notes = trace.notes | {
        "made": "estimated without a GPU: operators of the CPU under fake tensors, some replaced "
        "by CUDA's (executor/cuda_operators.py); no workspaces",
    }
    return msgspec.structs.replace(trace, notes=notes)


class _CudaLog(Log):
    """A log of the CPU's operators under the names of CUDA's, without what stays on the host."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"))
        self._on_host: set[int] = set()  # by address, while alive

    def __torch_dispatch__(
        self, func: Overload, types: object, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten.lift_fresh.default and args[0].dim() == 0:
            self.leave_on_host(args[0])  # torch.tensor(1.0)
        if not self.quiet and any(self._hosted(t) for _, t in tensors_of(args, kwargs)):
            return func(*args, **kwargs)  # what touches a number on the host is the host's
        return super().__torch_dispatch__(func, types, args, kwargs)

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


class _Values(TorchDispatchMode):
    """Gives 0 where a step reads a value that a fake tensor does not have."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Overload, types: object, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        try:
            return func(*args, **(kwargs or {}))
        except DataDependentOutputException:
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
            if group.get("foreach", False) is None and not group.get("fused"):
                group["foreach"] = True
            if group.get("capturable") or group.get("fused"):
                continue
            for parameter in group["params"]:
                counter = optimizer.state.get(parameter, {}).get("step")
                if isinstance(counter, torch.Tensor):
                    log.leave_on_host(counter)

    hook = register_optimizer_step_pre_hook(choose)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def _no_cuda_autocast() -> Iterator[None]:
    """Refuse autocast for CUDA: without CUDA torch would leave it out, and the bytes be wrong."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*CUDA is not available.*")
        try:
            yield
        except UserWarning as warning:
            raise Unsupported(
                f"the step asks for CUDA by name ({str(warning).split('.')[0]}), which an estimate "
                "does not have; take the device from a tensor: "
                "torch.autocast(device_type=x.device.type, ...)"
            ) from None
