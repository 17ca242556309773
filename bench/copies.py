"""What copies cost this GPU's host, and what its links do: by the executor's own backend.

    python bench/copies.py [link] [issue] [entry] [step] >> copies.jsonl

Without a word all four are measured; each line of JSON says `what` it is.

link   The rate each way, alone and both ways at once, of copies that queue up behind a large one,
       so that the host is not what they wait for; and what one copy takes from an idle GPU until
       the host knows that it has ended.
issue  What the host takes for the backend's calls: a copy out, a fetch, a fence (`wait`). Nothing
       is waited for between them; `kernels` small ones are launched before each, unmeasured.
entry  The same for what an executed step does with one storage: take a block and copy, drop,
       fetch, show. `transfer_ns` is half of all four: what `copy_issue_time` of a machine file
       means.
step   The small network of the zoo, a step that is bound by its launches, in turns under `liveness`
       and under an offload of everything: `transfer_ns` is by how much a step gets longer for each
       copy and each fetch in it, for the host alone and from idle to idle.

Without a GPU the emulated device stands in: the lines then say `emulated`, and prove only that the
script works.
"""

import gc
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import Any

import torch

from superneurons import zoo
from superneurons.executor import Executor
from superneurons.executor.backend import Backend
from superneurons.executor.cpu_backend import EmulatedBackend
from superneurons.executor.cuda_backend import CudaBackend
from superneurons.executor.entries import Entry, View
from superneurons.executor.private import address
from superneurons.executor.provenance import provenance
from superneurons.executor.slabs import Block, Slabs
from superneurons.schedules import Copy, Fetch

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda", torch.cuda.current_device()) if CUDA else torch.device("cpu")
SIZES = [4 << 10 << 2 * i for i in range(7 if CUDA else 3)]  # 4 KiB to 16 MiB
COUNT = 32 if CUDA else 4  # in a row: fewer than the driver queues before it holds the host up
REPEATS = 15 if CUDA else 3
PLUG = 256 << 20 if CUDA else 1 << 20  # what others queue up behind: 5 ms at 55 GB/s
KERNELS = (0, 4)
BOUND = 8 << 30  # of the host's memory
WAYS = {"out": (True, False), "in": (False, True), "both": (True, True)}
ROUNDS = 40 if CUDA else 3
TIER = "host"
PLAIN, OFFLOAD = "liveness", "liveness+offload:release=immediate"

Line = dict[str, Any]
Action = Callable[[], object]


def main() -> None:
    asked = sys.argv[1:] or list(BENCHES)
    if not CUDA:
        torch.set_num_threads(1)
    backend = CudaBackend(DEVICE) if CUDA else EmulatedBackend()
    about: Line = provenance(DEVICE) if CUDA else {"emulated": True} | provenance(DEVICE)
    for what in asked:
        for line in BENCHES[what](backend):
            print(json.dumps({"what": what} | line | about), flush=True)
        gc.collect()


# -- the link --------------------------------------------------------------------------------------


def link(backend: Backend) -> Iterator[Line]:
    """Yield for each size the time of a copy in a queue, each way and both, and of one alone."""
    slabs = Slabs(backend, TIER, BOUND)
    plugs = Pairs(slabs, PLUG, 1), Pairs(slabs, PLUG, 1)
    for nbytes in SIZES:
        many = Pairs(slabs, nbytes, COUNT), Pairs(slabs, nbytes, COUNT)
        one = Pairs(slabs, nbytes, 1)
        for way, (out, back) in WAYS.items():
            first = [(Pairs.copy_out, plugs[0])] * out + [(Pairs.fetch, plugs[1])] * back
            rest = [(Pairs.copy_out, many[0])] * out + [(Pairs.fetch, many[1])] * back
            ns = (drained(backend, first + rest) - drained(backend, first)) / COUNT
            rate = round(nbytes * (out + back) / ns, 2) if ns > 0 else None
            line: Line = {"nbytes": nbytes, "way": way, "queued_ns": round(ns), "gb_per_s": rate}
            if way != "both":
                copy = Pairs.copy_out if out else Pairs.fetch
                line["alone_ns"] = round(drained(backend, [(copy, one)]))
            yield line


class Pairs:
    """Blocks of a tier, and as many bytes on the device to copy there."""

    def __init__(self, slabs: Slabs, nbytes: int, count: int) -> None:
        self.blocks = [taken(slabs, nbytes) for _ in range(count)]
        self.sources = [torch.zeros(nbytes, dtype=torch.uint8, device=DEVICE) for _ in range(count)]

    def copy_out(self, backend: Backend) -> object:
        """Start copying everything out, in one call."""
        pairs = [(s, b.memory) for s, b in zip(self.sources, self.blocks, strict=True)]
        return backend.copy_out(pairs, TIER, ())

    def fetch(self, backend: Backend) -> object:
        """Start fetching everything, in one call; return the bytes, to be kept meanwhile."""
        return backend.fetch([block.memory for block in self.blocks], TIER, ())


Call = tuple[Callable[[Pairs, Backend], object], Pairs]


def taken(slabs: Slabs, nbytes: int) -> Block:
    block = slabs.take(nbytes)
    assert block is not None
    return block


def drained(backend: Backend, calls: Sequence[Call]) -> float:
    """Return the median time from an idle device until all that is called for has ended."""
    times = []
    for _ in range(REPEATS + 1):
        backend.drain()
        backend.begin()
        begin = time.perf_counter_ns()
        kept = [call(pairs, backend) for call, pairs in calls]  # bytes stay until copies have ended
        backend.drain()
        times.append(time.perf_counter_ns() - begin)
        kept.clear()
    return median(times[1:])  # the first one warms up


# -- the host's time -------------------------------------------------------------------------------


class Calls:
    """What may be asked of a backend COUNT times in a row, with blocks of so many bytes."""

    names = ("copy_out", "fence", "fetch")

    def __init__(self, backend: Backend, slabs: Slabs, nbytes: int) -> None:
        self._backend = backend
        self._pairs = Pairs(slabs, nbytes, COUNT)
        self._tickets: list[Any] = []
        self._fetched: list[Any] = []

    def copy_out(self, i: int) -> None:
        pair = self._pairs.sources[i], self._pairs.blocks[i].memory
        self._tickets.append(self._backend.copy_out((pair,), TIER, ()))

    def fence(self, i: int) -> None:
        self._backend.wait(self._tickets[i])

    def fetch(self, i: int) -> None:
        memory = self._pairs.blocks[i].memory
        self._fetched.append(self._backend.fetch((memory,), TIER, ()))


class Trips:
    """COUNT storages of so many bytes that leave and come back as those of an executed step do."""

    names = ("copy", "drop", "fetch", "show")

    def __init__(self, backend: Backend, slabs: Slabs, nbytes: int) -> None:
        self._slabs = slabs
        self._aliases: list[torch.Tensor] = []
        self._entries: list[Entry] = []
        self._view = View(torch.uint8, (nbytes,), (1,), 0)
        for i in range(COUNT):
            alias = torch.zeros(nbytes, dtype=torch.uint8, device=DEVICE)
            storage = alias.untyped_storage()
            self._entries.append(Entry(backend, i, storage, address(storage), 0))
            self._entries[i].add(alias)
            self._aliases.append(alias)

    def copy(self, i: int) -> None:
        entry = self._entries[i]
        entry.copy(taken(self._slabs, entry.nbytes), TIER)

    def drop(self, i: int) -> None:
        self._entries[i].drop()

    def fetch(self, i: int) -> None:
        self._entries[i].fetch(TIER)

    def show(self, i: int) -> None:
        self._entries[i].show(self._aliases[i], self._view)


def issue(backend: Backend) -> Iterator[Line]:
    """Yield for each size what the host takes for each call."""
    for sizes, found in host_times(backend, Calls):
        for name, times in found.items():
            yield {"call": name} | sizes | spread(times)


def entry(backend: Backend) -> Iterator[Line]:
    """Yield for each size what the host takes for a storage that leaves and comes back."""
    for sizes, found in host_times(backend, Trips):
        both = spread([sum(each) / 2 for each in zip(*found.values(), strict=True)])
        medians = {f"{name}_ns": round(median(times)) for name, times in found.items()}
        yield sizes | medians | {"transfer_ns": both["ns"], "spread": both["spread"]}


def host_times(
    backend: Backend, kind: type[Calls] | type[Trips]
) -> Iterator[tuple[Line, dict[str, list[float]]]]:
    """Yield, by size and kernels between, what the host took for each kind of call: ns, by repeat.

    The kinds follow one another, COUNT calls of each, and nothing is waited for until the end.
    """
    slabs = Slabs(backend, TIER, BOUND)
    work = torch.ones(1024, device=DEVICE)
    for nbytes in SIZES:
        for kernels in KERNELS:
            found: dict[str, list[float]] = {name: [] for name in kind.names}
            for _ in range(REPEATS + 1):
                calls = kind(backend, slabs, nbytes)
                backend.drain()
                backend.begin()
                for name, times in found.items():
                    times.append(host_ns(getattr(calls, name), work, kernels))
                backend.drain()
                del calls  # only here may its bytes go: the copies have ended
            warm = {name: times[1:] for name, times in found.items()}
            yield {"nbytes": nbytes, "kernels": kernels}, warm


def host_ns(call: Callable[[int], None], work: torch.Tensor, kernels: int) -> float:
    """Return what the host takes for each of COUNT calls, with kernels launched before each."""
    if not kernels:
        begin = time.perf_counter_ns()
        for i in range(COUNT):
            call(i)
        return (time.perf_counter_ns() - begin) / COUNT
    total = 0
    for i in range(COUNT):
        for _ in range(kernels):
            work.mul_(1.0)
        begin = time.perf_counter_ns()
        call(i)
        total += time.perf_counter_ns() - begin
    return total / COUNT


def spread(times: Sequence[float]) -> Line:
    return {"ns": round(median(times)), "spread": [round(min(times)), round(max(times))]}


# -- a whole step ----------------------------------------------------------------------------------


def step(backend: Backend) -> Iterator[Line]:
    """Yield what steps of the small network take in turns, and what that makes for a transfer."""
    with torch.device(DEVICE):
        small = zoo.small_cnn()
    executors = {policy: Executor(policy, device=DEVICE) for policy in (PLAIN, OFFLOAD)}
    for executor in executors.values():
        for _ in range(5):
            run(small, executor)
    host: dict[str, list[int]] = {policy: [] for policy in executors}
    whole: dict[str, list[int]] = {policy: [] for policy in executors}
    for turn in range(ROUNDS):
        order = list(executors.items())
        for policy, executor in order if turn % 2 else reversed(order):
            synchronize()
            begin = time.perf_counter_ns()
            run(small, executor)
            host[policy].append(time.perf_counter_ns() - begin)
            synchronize()
            whole[policy].append(time.perf_counter_ns() - begin)
    schedule = executors[OFFLOAD].plans[0].schedule
    copies, fetches = (
        sum(isinstance(each, kind) for each in schedule.instructions) for kind in (Copy, Fetch)
    )
    for policy, executor in executors.items():
        report = executor.report
        assert report is not None
        yield {
            "policy": policy,
            "mode": report.mode,
            "why": report.why,
            "host": spread(host[policy]),
            "idle_to_idle": spread(whole[policy]),
        }
    line: Line = {"policy": OFFLOAD, "than": PLAIN, "copies": copies, "fetches": fetches}
    for name, times in (("host", host), ("idle_to_idle", whole)):
        longer = [ours - theirs for ours, theirs in zip(times[OFFLOAD], times[PLAIN], strict=True)]
        line[f"{name}_longer"] = spread(longer)
        line[f"{name}_transfer_ns"] = round(median(longer) / (copies + fetches))
    yield line


def run(small: Action, executor: Executor) -> None:
    with executor.step():
        small()


def synchronize() -> None:
    if CUDA:
        torch.cuda.synchronize()


BENCHES: dict[str, Callable[[Backend], Iterator[Line]]] = {
    "link": link,
    "issue": issue,
    "entry": entry,
    "step": step,
}


if __name__ == "__main__":
    main()
