"""Every private name of torch that this package uses, in one place, with what each is for.

`tests/test_private.py` tells when one has gone or behaves differently. Seen in 2.11 and 2.13.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from operator import attrgetter
from typing import Any

import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException as DataDependentOutputException,
)
from torch._subclasses.fake_tensor import (
    DynamicOutputShapeException as DynamicOutputShapeException,
)
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

Overload = torch._ops.OpOverload
"""An operator with one of its signatures: what an observer is handed."""

Observer = Callable[[Overload, tuple[Any, ...], dict[str, Any]], Any]
"""What sees an operator with its arguments, calls it, and returns its result."""


def _unseen(overload: Overload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return overload(*args, **kwargs)


# The first is for an operator that is on its way while the last of the others goes.
_observers: list[Observer] = [_unseen]


@cache
def _observers_key() -> Any:
    """Return the dispatch key that observers stand at; put them there once.

    The key `Fake` is below autograd and above all devices, and nothing else has it.
    """
    key = torch._C._dispatch_key_parse("Fake")
    exclude = torch._C._dispatch_tls_set_dispatch_key_excluded

    def observe_below(overload: Overload, *args: Any, **kwargs: Any) -> Any:
        # What a guard does, in a sixth of its time: here the key is never excluded already.
        exclude(key, True)
        try:
            return _observers[-1](overload, args, kwargs)
        finally:
            exclude(key, False)

    everything = torch.library.Library("_", "IMPL")
    everything.fallback(observe_below, "Fake")
    # A subclass is made of a tensor that Python has not seen: of a detached one.
    aten = torch.library.Library("aten", "IMPL")
    aten.impl("detach", torch.library.fallthrough_kernel, "Fake")
    _kept.extend((everything, aten))
    return key


_kept: list[torch.library.Library] = []  # a library that goes takes its operators along


@contextmanager
def observed(observer: Observer) -> Iterator[None]:
    """Let *observer* see each operator below autograd inside the block, and call it.

    No dispatch mode is active, so torch runs what it runs otherwise.
    """
    key = _observers_key()
    _observers.append(observer)
    try:
        with torch._C._IncludeDispatchKeyGuard(key):
            yield
    finally:
        _observers.pop()


def is_of_a_mode(error: BaseException) -> bool:
    """Return whether torch has failed for a dispatch mode that was entered while somebody looked
    on."""
    return "python_dispatch" in str(error) and "INTERNAL ASSERT" in str(error)


class FakeTensors(FakeTensorMode):
    """The mode in which tensors have shapes and no bytes; a copy of a model stays in it."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "FakeTensors":
        return self


class BelowAutograd:
    """A block in which operators run as an observer calls them: below autograd and autocast, seen
    by nobody. Much cheaper than the public contexts, which do not hide from observers either.

    Kernels find gradients enabled, as in forward: some are chosen by that.
    """

    __slots__ = ("_grad", "_guard")

    def __enter__(self) -> None:
        self._grad = torch.is_grad_enabled()
        self._guard = torch._C._ExcludeDispatchKeyGuard(_hidden_keys())
        self._guard.__enter__()
        if not self._grad:
            torch._C._set_grad_enabled(True)

    def __exit__(self, *error: object) -> None:
        if not self._grad:
            torch._C._set_grad_enabled(False)
        self._guard.__exit__(*error)


@cache
def _hidden_keys() -> Any:
    """Return the dispatch keys of observers, of autograd and of autocast."""
    keys = torch._C.DispatchKeySet(_observers_key())
    # As torch._C._AutoDispatchBelowAutograd has them: one guard for all takes half the time.
    autograd = "AutogradFunctionality", "AutogradOther", "AutogradNestedTensor"
    for name in (*autograd, "AutocastCPU", "AutocastCUDA"):
        keys = keys | torch._C.DispatchKeySet(torch._C._dispatch_key_parse(name))
    return keys


def kernel_of(overload: Overload) -> Callable[..., Any]:
    """Return an operator as the function behind it, without its Python wrapper; or as torch's own
    binding of the same signature: with five lists that reads a convolution's arguments in half the
    time, and what the others save still shows in a network that is bound by its launches."""
    found: Callable[..., Any] = _BOUND.get(overload.name(), overload._op)
    return found


_BOUND: dict[str, Callable[..., Any]] = {
    "aten::add_.Tensor": torch.Tensor.add_,
    "aten::convolution": torch.convolution,
    "aten::cudnn_batch_norm": torch.cudnn_batch_norm,
    "aten::native_batch_norm": torch.native_batch_norm,
    "aten::relu_": torch.relu_,
}


def tensors_of(module: torch.nn.Module, names: tuple[str, ...]) -> list[torch.Tensor]:
    """Return the tensors that are a module's attributes of these names.

    A module says by an error that it has none, in 2 us; so most are searched as they do it.
    """
    own = module.__dict__
    kind: Any = type(module)
    if (
        not _finds_as_usual(kind, names)
        or not own.keys().isdisjoint(names)
        or not own["_parameters"].keys().isdisjoint(names)
    ):
        found = [getattr(module, name, None) for name in names]
    elif buffers := own["_buffers"]:
        found = [buffers.get(name) for name in names]
    else:
        return []
    return [each for each in found if isinstance(each, torch.Tensor)]


@cache
def _finds_as_usual(kind: Any, names: tuple[str, ...]) -> bool:
    """Whether all modules of a class find such attributes in themselves alone."""
    usual = torch.nn.Module
    return (
        kind.__getattr__ is usual.__getattr__
        and kind.__getattribute__ is usual.__getattribute__
        and not any(hasattr(kind, name) for name in names)
    )


def has_kernel(overload: Overload, device: str) -> bool:
    """Return whether an operator is a kernel of its own on that type of device."""
    key = {"cpu": "CPU", "cuda": "CUDA"}.get(device, "")
    return bool(key) and bool(torch._C._dispatch_has_kernel_for_dispatch_key(overload.name(), key))


def compiled_frames() -> int:
    """Return how many functions torch.compile has compiled in this process."""
    dynamo: Any = sys.modules.get("torch._dynamo.utils")
    return 0 if dynamo is None else int(dynamo.counters["frames"]["ok"])


def runs_eagerly() -> bool:
    """Return whether what was compiled runs as if it were not: `set_stance("force_eager")`."""
    dynamo: Any = sys.modules.get("torch._dynamo.eval_frame")
    return dynamo is not None and bool(dynamo._stance.stance == "force_eager")


@contextmanager
def compiled_run_eagerly(tell: Callable[[], None]) -> Iterator[None]:
    """Let what torch.compile has compiled run as it is written, inside the block; *tell* hears of
    each call."""
    import torch._dynamo.eval_frame as dynamo  # only now: it takes a second

    frames: Any = dynamo
    plain = frames._callback_from_stance

    def told(callback: Any) -> Any:
        if callback not in (None, False):  # those are for what is not to be compiled
            tell()
        return plain(callback)

    frames._callback_from_stance = told
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        frames._callback_from_stance = plain


def negatives(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor on the same bytes that stands for their negatives: `x.conj().imag` is one."""
    return torch._neg_view(tensor)


def is_fake(tensor: torch.Tensor) -> bool:
    """Return whether there is no memory behind a tensor: torch.compile leaves such ones behind."""
    return isinstance(tensor, FakeTensor)


def arguments(overload: Overload) -> Sequence[Any]:
    """Return an operator's arguments as its schema has them, with names and what it writes."""
    found: Sequence[Any] = overload._schema.arguments
    return found


sequence_number: Callable[[], int] = torch._C._autograd._get_sequence_nr
"""Return the number that the next autograd node of this thread gets."""


running_node: Callable[[], Any] = torch._C._current_autograd_node
"""Return the autograd node that runs in this thread, None outside backward."""


def number_of(node: Any) -> int:
    """Return an autograd node's sequence number."""
    return int(node._sequence_nr())


def version(tensor: torch.Tensor) -> int:
    """Return how often a tensor's storage was modified, as autograd counts it; -1 if it does not.

    Tensors made in inference mode have no count.
    """
    return -1 if tensor.is_inference() else int(tensor._version)


version_of = attrgetter("_version")
"""Return the same of a tensor that is not made in inference mode: four times as fast."""


backward_pass: Callable[[], int] = torch._C._current_graph_task_id
"""Return the number of the backward pass that this thread is in, between nodes too; or -1."""


push_hooks: Callable[[Callable[..., Any], Callable[..., Any]], None] = (
    torch._C._autograd._push_saved_tensors_default_hooks
)
"""Have a pair of hooks, pack and unpack, called for what autograd saves from here on, in place of
those that were pushed before."""


pop_hooks: Callable[[], None] = torch._C._autograd._pop_saved_tensors_default_hooks
"""Take away the pair that was pushed last. From within its own pack hook, too: what was saved
before comes back through its unpack hook all the same."""


def hooks_are_pushed() -> bool:
    """Whether anybody has hooks for what autograd saves. True where torch cannot tell."""
    top = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return top is None or top(True) is not None


raw_stream: Callable[[int], int] = getattr(torch._C, "_cuda_getCurrentRawStream", int)
"""Return the CUDA stream that is current on a device, as the driver knows it: in a tenth of the
time that its Python object takes. Where torch is built without CUDA nobody asks."""


def memory_history_runs() -> bool:
    """Return whether the CUDA allocator's events are being recorded."""
    runs = getattr(torch._C, "_cuda_isHistoryEnabled", None)
    return runs is not None and bool(runs())


def record_memory_history(on: bool) -> None:
    """Begin or end recording the CUDA allocator's events, without stacks."""
    torch.cuda.memory._record_memory_history("all" if on else None, context=None)


def memory_history(device: int) -> list[dict[str, Any]]:
    """Return the recorded events of a CUDA device: action, addr and size, in order."""
    found: list[dict[str, Any]] = torch.cuda.memory._snapshot(device)["device_traces"][device]
    return found


def is_view(tensor: torch.Tensor) -> bool:
    """Return whether autograd knows a tensor as a view: it then holds the one it is a view of."""
    return tensor._base is not None


def holders(address: int) -> int:
    """Return how many hold the storage at *address*: tensors, and its Python object once made.

    *address* is what `UntypedStorage._cdata` says of a storage that is alive; nothing guards
    against one that is not.
    """
    return int(torch._C._storage_Use_Count(address))


address: Callable[[torch.UntypedStorage], int] = attrgetter("_cdata")
"""Return what tells one live storage from another; another may have it after its death."""
