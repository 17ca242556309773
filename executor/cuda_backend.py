"""A CUDA device: copies on streams of their own, fences by events.

Memory is decided by the order in which the host issues things, never by when a copy ends: whatever
is on the device is allocated and freed for the compute stream, and that stream waits for a copy's
event before the bytes are given up. So no tensor is ever recorded for another stream.
"""

import gc
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from ..allocators.standing import Standing
from ..errors import Unsupported
from ..traces.readers.snapshot_log import segments_of
from .backend import Backend, DrawState, Ticket, host_nbytes
from .meter import requested
from .private import raw_stream
from .provenance import allocator_setting

Around = tuple[torch.cuda.Event, torch.cuda.Event]
"""Events before and after something whose time is asked for."""


class CudaBackend(Backend):
    """A GPU with pinned host memory, and another GPU's memory if *peer* names one.

    The compute stream is the one that is current when a step begins.
    """

    lags = True

    def __init__(self, device: torch.device, peer: torch.device | None = None) -> None:
        super().__init__(device, ("host",) if peer is None else ("host", "peer"))
        self._peer = peer
        self._index = torch.cuda.current_device() if device.index is None else device.index
        self._compute_raw = 0
        self._waits: list[Around] = []
        self._copies: dict[str, list[Around]] = {"out": [], "in": []}
        with torch.cuda.device(device):
            self._compute = torch.cuda.current_stream()
            self._out = {tier: torch.cuda.Stream() for tier in self.tiers}
            self._in = {tier: torch.cuda.Stream() for tier in self.tiers}
        # torch copies on the stream that is current where the bytes are. On the peer's default one
        # a copy would have all that computes here wait for it.
        self._far = None if peer is None else torch.cuda.Stream(peer)

    def begin(self) -> None:
        """Take the stream that is current now for the one that computes."""
        # Asked outside of all our contexts: inside one it would be a copy stream.
        self._compute = torch.cuda.current_stream(self.device)
        self._compute_raw = raw_stream(self._index)

    @property
    def allocator(self) -> str:
        """That of PyTorch; how it is set shows in the segments that it has taken so far, or before
        the first of them in the environment."""
        segments = torch.cuda.memory_snapshot()
        expandable = any(each.get("is_expandable") for each in segments)
        if not segments:
            expandable = "expandable_segments:True" in allocator_setting()
        return "caching-expandable" if expandable else "caching"

    def standing(self, addresses: Mapping[int, int]) -> Standing:
        """Empty the allocator's cache, and return what is left."""
        gc.collect()
        torch.cuda.empty_cache()
        return Standing(
            segments_of(torch.cuda.memory_snapshot(), self.device.index),
            torch.cuda.current_stream(self.device).cuda_stream,
            self.allocator == "caching-expandable",
            addresses,
        )

    def draw_state(self) -> DrawState:
        """Return seed and offset of the GPU's generator."""
        generator = torch.cuda.default_generators[self._index]
        return generator.initial_seed(), generator.get_offset()

    def draw_from(self, state: DrawState) -> None:
        """Set the offset alone: a generator that is given a whole state has cuDNN's dropout begin
        anew in the recurrent networks of the steps to come.

        Raises Unsupported if the seed is another one by now.
        """
        seed, offset = state
        generator = torch.cuda.default_generators[self._index]
        if generator.initial_seed() != seed:
            raise Unsupported(
                "the step sets a seed after a random operation that is to run again; set it "
                "between steps, or take a policy that keeps or offloads"
            )
        generator.set_offset(offset)

    def allocated_nbytes(self) -> int:
        """Return the bytes that were asked for and are there."""
        return requested(self.device)["current"]

    def computes_here(self) -> bool:
        """Whether the stream that is current now is that of the step."""
        return raw_stream(self._index) == self._compute_raw

    def memory(self, tier: str, nbytes: int) -> torch.Tensor:
        """Return pinned memory of the host, or memory of the other GPU."""
        if tier == "peer":
            return torch.empty(nbytes, dtype=torch.uint8, device=self._peer)
        return torch.empty(nbytes, dtype=torch.uint8, device="cpu", pin_memory=True)

    def copy_out(
        self, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]], tier: str, after: Sequence[Ticket]
    ) -> torch.cuda.Event:
        """Start copies on the stream for copies out to that tier."""
        stream = self._out[tier]
        stream.wait_event(self._compute.record_event())
        return self._copy([(block, source) for source, block in pairs], stream, after, "out")

    def fetch(
        self, blocks: Sequence[torch.Tensor], tier: str, after: Sequence[Ticket]
    ) -> tuple[list[torch.Tensor], torch.cuda.Event]:
        """Allocate for the compute stream, and copy on the stream for copies in from that tier."""
        with self._on(self._compute):
            back = [
                torch.empty(block.numel(), dtype=torch.uint8, device=self.device)
                for block in blocks
            ]
        stream = self._in[tier]
        # Whoever had these bytes before may still be computing with them: not before that is over.
        stream.wait_event(self._compute.record_event())
        pairs = list(zip(back, blocks, strict=True))
        with torch.cuda.stream(self._far if tier == "peer" else None):
            return back, self._copy(pairs, stream, after, "in")

    def wait(self, ticket: torch.cuda.Event) -> None:
        """Let the compute stream wait for a copy's event."""
        if not self.timing:
            self._compute.wait_event(ticket)
            return
        around = _around()
        self._compute.record_event(around[0])
        self._compute.wait_event(ticket)
        self._compute.record_event(around[1])
        self._waits.append(around)

    def hold_to(self, nbytes: int) -> None:
        """Have torch's allocator refuse what is beyond so many bytes; it gives back what it has
        cached before it does."""
        total = torch.cuda.get_device_properties(self.device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, nbytes / total), self.device)

    def stamp(self) -> torch.cuda.Event:
        """Record an event on the compute stream."""
        event = torch.cuda.Event(enable_timing=True)
        self._compute.record_event(event)
        return event

    def between_ns(self, begin: torch.cuda.Event, end: torch.cuda.Event) -> int:
        """Return the time between two events, to about half a microsecond."""
        end.synchronize()
        return _between_ns(begin, end)

    @property
    def timed_waits(self) -> int:
        """How many fences the compute stream has been given, with events around them."""
        return len(self._waits)

    def waits_ns(self) -> list[int]:
        """Return how long the compute stream stood still for each fence since the last call."""
        waits, self._waits = self._waits, []
        return _elapsed_ns(waits)

    def copied_ns(self) -> tuple[int, int]:
        """Return how long copies out and in took since the last call, if they were timed."""
        copies, self._copies = self._copies, {"out": [], "in": []}
        return sum(_elapsed_ns(copies["out"])), sum(_elapsed_ns(copies["in"]))

    def ended(self, ticket: torch.cuda.Event) -> bool:
        """Whether a copy's event has been reached."""
        return bool(ticket.query())

    def room(self, tier: str) -> int:
        """Return half of the host's memory, shared by the processes that were started together, or
        nine tenths of what is free on the other GPU."""
        if tier == "peer":
            return int(torch.cuda.mem_get_info(self._peer)[0] * 9 // 10)
        return host_nbytes() // 2 // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))

    def _copy(
        self,
        pairs: Sequence[tuple[torch.Tensor, torch.Tensor]],
        stream: torch.cuda.Stream,
        after: Sequence[Ticket],
        way: str,
    ) -> torch.cuda.Event:
        """Copy pairs of target and source on a stream, after other copies; return the event."""
        for ticket in after:
            stream.wait_event(ticket)
        around = _around() if self.timing else None
        if around is not None:
            stream.record_event(around[0])
            self._copies[way].append(around)
        with self._on(stream):
            for target, source in pairs:
                target.copy_(source, non_blocking=True)
        event: torch.cuda.Event = stream.record_event(None if around is None else around[1])
        return event

    @contextmanager
    def _on(self, stream: torch.cuda.Stream) -> Iterator[None]:
        """Issue to a stream inside the block, as `torch.cuda.stream` does in several times as long:
        the stream to go back to is known, nearly always."""
        usual = self._compute if self.computes_here() else torch.cuda.current_stream(self.device)
        if stream is usual:
            yield
            return
        torch.cuda.set_stream(stream)
        try:
            yield
        finally:
            torch.cuda.set_stream(usual)

    def drain(self) -> None:
        """Wait until the copy streams and the compute stream are idle."""
        for stream in (*self._out.values(), *self._in.values(), self._compute):
            stream.synchronize()


def _around() -> Around:
    return torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)


def _elapsed_ns(pairs: Sequence[Around]) -> list[int]:
    if pairs:
        pairs[-1][1].synchronize()
    return [_between_ns(begin, end) for begin, end in pairs]


def _between_ns(begin: torch.cuda.Event, end: torch.cuda.Event) -> int:
    return int(begin.elapsed_time(end) * 1e6)
