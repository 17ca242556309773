"""Who holds a storage that should have gone: found among all that Python knows, slowly."""

import gc
from types import FrameType
from typing import Any

import torch

from .private import address


def held_by(storage: torch.UntypedStorage) -> list[str]:
    """Return, in words, what refers to the tensors on a storage; empty if only C++ does."""
    where = address(storage)
    tensors = [
        each
        for each in gc.get_objects()
        if issubclass(type(each), torch.Tensor)
        and each.layout is torch.strided
        and address(each.untyped_storage()) == where
    ]
    found: dict[str, None] = {}
    for tensor in tensors:
        for each in gc.get_referrers(tensor):
            if each is not tensors and not isinstance(each, FrameType):
                found[_told(each, tensor)] = None
    return list(found)


def _told(holder: Any, tensor: torch.Tensor) -> str:
    if isinstance(holder, dict):
        keys = [repr(key) for key, value in holder.items() if value is tensor]
        owners = [
            each for each in gc.get_referrers(holder) if getattr(each, "__dict__", None) is holder
        ]
        of = f"attribute of a {type(owners[0]).__name__}" if owners else "entry of a dict"
        return f"{', '.join(keys)}, {of}"
    if isinstance(holder, list | tuple):
        return f"an entry of a {type(holder).__name__}"
    return f"a {type(holder).__name__}"
