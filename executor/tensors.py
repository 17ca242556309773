"""The tensors among an operator's arguments and results."""

from collections.abc import Iterator
from typing import Any

import torch

from .private import Overload


def tensors_of(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Iterator[tuple[int | str, torch.Tensor]]:
    """Yield the tensors among the arguments, those in lists too, with position or name."""
    for i, argument in enumerate(args):
        if isinstance(argument, torch.Tensor):
            yield i, argument
        elif isinstance(argument, list | tuple):
            for each in argument:
                if isinstance(each, torch.Tensor):
                    yield i, each
    for name, argument in kwargs.items():
        for each in each_of(argument):
            yield name, each


def each_of(result: Any) -> Iterator[torch.Tensor]:
    if isinstance(result, torch.Tensor):
        yield result
    elif isinstance(result, list | tuple):
        for item in result:
            yield from each_of(item)


def extent(tensor: torch.Tensor) -> tuple[int, int]:
    """Return a tensor's first byte in its storage, and how many bytes it spans from there."""
    item, offset = tensor.element_size(), int(tensor.storage_offset())
    if tensor.numel() == 0:
        return offset * item, 0
    span = 1 + sum(
        (size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )
    return offset * item, int(span) * item


def next_call(calls: int, func: Overload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Return the digest of calls with one more: its operator and the shapes of its tensors.

    A sum of gradients is the same whether it is made in place or not: only a logged step minds.
    """
    name = func.overloadpacket.__name__.rstrip("_")
    return hash((calls, name, *(tensor.shape for _, tensor in tensors_of(args, kwargs))))
