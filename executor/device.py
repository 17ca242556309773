"""The device that steps run on, by its name, and the peer beside it."""

import torch

from ..errors import InvalidInput
from .backend import Backend
from .cpu_backend import EmulatedBackend
from .cuda_backend import CudaBackend


def backend_of(device: torch.device | str | None, peer: torch.device | str | None) -> Backend:
    """Return the backend of a device, the first GPU unless given, with another GPU as its peer.

    Raises InvalidInput if one of them is not there, or cannot be reached.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise InvalidInput(f"device {device!r}: {str(error).partition(chr(10))[0]}") from None
    if found.type == "cpu":
        if peer is not None:
            raise InvalidInput(
                f"peer {peer} was asked for, but this is a CPU, on which the host's memory stands "
                "for another GPU's; leave it out"
            )
        return EmulatedBackend()
    if found.type != "cuda" or (found.index or 0) >= torch.cuda.device_count():
        there = ", ".join(f"cuda:{i}" for i in range(torch.cuda.device_count()))
        raise InvalidInput(f"device {found} is not there; there are: {there or 'no GPUs'}, and cpu")
    if str(found) == "cuda":
        found = torch.device("cuda", torch.cuda.current_device())
    return CudaBackend(found, None if peer is None else _near(found, peer))


def _near(device: torch.device, peer: torch.device | str) -> torch.device:
    """Return the other GPU that *peer* names, if it can be reached."""
    there = [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    near = next((each for each in there if str(each) == str(peer)), None)
    if near is None or near == device:
        others = ", ".join(str(each) for each in there if each != device)
        raise InvalidInput(
            f"peer {peer} is no other GPU than {device}; there are: {others or 'no others'}"
        )
    if not torch.cuda.can_device_access_peer(device, near):
        raise InvalidInput(f"peer {near} cannot be reached from {device}; take another, or none")
    return near
