"""Every private name of torch that this package uses, in one place, with what each is for.

`tests/test_private.py` tells when one has gone or behaves differently. Seen in 2.11 and 2.13.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException as DataDependentOutputException,
)
from torch._subclasses.fake_tensor import (
    DynamicOutputShapeException as DynamicOutputShapeException,
)
from torch._subclasses.fake_tensor import FakeTensorMode

Overload = torch._ops.OpOverload
"""An operator with one of its signatures: what a dispatch mode is handed."""


class FakeTensors(FakeTensorMode):
    """The mode in which tensors have shapes and no bytes; a copy of a model stays in it."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "FakeTensors":
        return self


def arguments(overload: Overload) -> Sequence[Any]:
    """Return an operator's arguments as its schema has them, with names and what it writes."""
    found: Sequence[Any] = overload._schema.arguments
    return found


def sequence_number() -> int:
    """Return the number that the next autograd node of this thread gets."""
    return int(torch._C._autograd._get_sequence_nr())


def running_node() -> Any:
    """Return the autograd node that runs in this thread, None outside backward."""
    return torch._C._current_autograd_node()


def number_of(node: Any) -> int:
    """Return an autograd node's sequence number."""
    return int(node._sequence_nr())


def version(tensor: torch.Tensor) -> int:
    """Return how often a tensor's storage was modified, as autograd counts it; -1 if it does not.

    Tensors made in inference mode have no count.
    """
    return -1 if tensor.is_inference() else int(tensor._version)


def in_backward() -> bool:
    """Return whether this thread is inside a backward pass, between nodes too."""
    return bool(torch._C._current_graph_task_id() != -1)


def holders(address: int) -> int:
    """Return how many hold the storage at *address*: tensors, and its Python object once made.

    *address* is what `UntypedStorage._cdata` says of a storage that is alive; nothing guards
    against one that is not.
    """
    return int(torch._C._storage_Use_Count(address))


def address(storage: torch.UntypedStorage) -> int:
    """Return what tells one live storage from another; another may have it after its death."""
    return int(storage._cdata)
