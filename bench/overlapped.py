"""Offload of everything, overlapped, as it is written by hand today: a rival, not part of ours.

Each save goes to pinned memory on a stream of its own while forward goes on, and comes back on
another one, the next few ahead of the node that asks. Nothing is planned and nothing is counted: a
few saves stay until their copy has ended, and a few are on their way back.
"""

import weakref
from collections import deque
from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

LEAVING: Final = 5  # saves that may be on their way out
AHEAD: Final = 3  # saves that may be on their way back
SMALL_NBYTES: Final = 16 << 10  # what is smaller stays


class _Entry:
    """The bytes of one storage: on the device, in the host's memory, or both."""

    def __init__(self, offload: "Overlapped", device: Tensor) -> None:
        self._offload = offload
        self.number = len(offload.entries)
        self.device: Tensor | None = device
        self.host, event = offload.host(device.numel())
        with offload.on(offload.out, event):
            self.host.copy_(device, non_blocking=True)
        self.event = offload.record(offload.out)  # of its last copy, either way

    def fetch(self) -> None:
        offload = self._offload
        self.device = torch.empty(self.host.numel(), dtype=torch.uint8, device=offload.device)
        with offload.on(offload.back, self.event):
            self.device.copy_(self.host, non_blocking=True)
        self.event = offload.record(offload.back)

    def __del__(self) -> None:  # the graph has let go of it
        offload = self._offload
        if self.device is not None:  # it may go only after its copy, whichever way that went
            offload.wait(self.event)
        offload.pool.setdefault(self.host.numel(), []).append((self.host, self.event))


class Overlapped:
    """`with overlapped:` around a step. Pinned memory is kept from step to step."""

    def __init__(self, device: torch.device, parameters: Any) -> None:
        # A tensor's device has a number.
        self.device: Final = torch.empty(0, device=device).device
        self.pool: Final[dict[int, list[tuple[Tensor, Any]]]] = {}
        self.pinned_nbytes = 0
        self._cuda = device.type == "cuda"
        self.out: Final = torch.cuda.Stream() if self._cuda else None
        self.back: Final = torch.cuda.Stream() if self._cuda else None
        self._parameters = {each.untyped_storage()._cdata for each in parameters}
        self._leaving: deque[tuple[tuple[int, int], _Entry]] = deque()
        self.entries: Final[list[weakref.ref[_Entry]]] = []  # in the order of forward

    def __enter__(self) -> None:
        self._hooks = saved_tensors_hooks(self._pack, self._unpack)
        self._hooks.__enter__()

    def __exit__(self, *exception: Any) -> None:
        self._hooks.__exit__(*exception)
        self._leaving.clear()
        self.entries.clear()

    def _pack(self, tensor: Tensor) -> Any:
        storage = tensor.untyped_storage()
        if (
            tensor.device != self.device
            or storage.nbytes() < SMALL_NBYTES
            or storage._cdata in self._parameters  # a Linear's weight comes as a view of it
        ):
            return tensor.detach()
        key = (storage._cdata, tensor._version)
        entry = next((entry for other, entry in self._leaving if other == key), None)
        if entry is None:  # not one that is on its way already
            whole = torch.empty(0, dtype=torch.uint8, device=self.device).set_(storage)
            entry = _Entry(self, whole)
            self._leaving.append((key, entry))
            self.entries.append(weakref.ref(entry))
            if len(self._leaving) > LEAVING:  # what computes from now on comes after its copy
                _, left = self._leaving.popleft()
                self.wait(left.event)
                left.device = None
        # The whole storage goes, so that strides and views come back as they were.
        return entry, tensor.dtype, tensor.storage_offset(), tensor.shape, tensor.stride()

    def _unpack(self, packed: Any) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        self._leaving.clear()  # backward has begun: what has not left yet stays
        entry, dtype, offset, shape, stride = packed
        for number in range(entry.number, max(entry.number - AHEAD, 0) - 1, -1):
            found = self.entries[number]()
            if found is not None and found.device is None:
                found.fetch()
        self.wait(entry.event)
        back = torch.empty(0, dtype=dtype, device=self.device)
        return back.set_(entry.device.untyped_storage(), offset, shape, stride)

    def host(self, nbytes: int) -> tuple[Tensor, Any]:
        """Return pinned memory, and the event after which it may be written."""
        if self.pool.get(nbytes):
            return self.pool[nbytes].pop()
        self.pinned_nbytes += nbytes
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=self._cuda), None

    def on(self, stream: Any, event: Any) -> Any:
        """Enter a stream, after what computes now and after *event*."""
        if stream is not None:
            stream.wait_stream(torch.cuda.current_stream())
            if event is not None:
                stream.wait_event(event)
        return torch.cuda.stream(stream)  # does nothing for None

    def record(self, stream: Any) -> Any:
        return None if stream is None else stream.record_event()

    def wait(self, event: Any) -> None:
        """Let what computes from now on come after *event*."""
        if event is not None:
            torch.cuda.current_stream().wait_event(event)
