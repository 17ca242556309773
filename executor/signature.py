"""What tells one kind of step from another: the shapes and types of its batch."""

from collections.abc import Hashable, Mapping

import torch


def signature(batch: object) -> Hashable:
    """Return what a batch looks like: tensors by type and shape, in mappings, lists and tuples;
    strings, whole numbers and the like by value, and of everything else its class."""
    if isinstance(batch, torch.Tensor):
        return batch.dtype, tuple(batch.shape), batch.requires_grad
    if isinstance(batch, str | bytes | int | None):
        return batch
    if isinstance(batch, Mapping):
        return tuple((key, signature(each)) for key, each in batch.items())
    if isinstance(batch, list | tuple):
        return tuple(signature(each) for each in batch)
    return type(batch).__name__
