"""Step time against peak on this GPU: what users have today, and our policies, in one run.

    python bench/frontier.py MODEL BATCH [METHOD ...] >> frontier.jsonl
    python bench/frontier.py check [MODEL ...]
    python bench/frontier_table.py frontier.jsonl --plot frontier.png

MODEL is of the zoo, or `resnetN` with N layers: resnet(6, 32, n3, 6). A METHOD is one of:

    plain           nothing at all; it is always measured, first and last
    checkpoint      torch.utils.checkpoint, non-reentrant, around each block
    sqrt            the same around each of about sqrt(N) runs of N blocks
    selective       torch's selective checkpointing of each block: outputs of convolutions,
                    matrix products and attention are saved, the rest is computed again
    save_on_cpu     torch.autograd.graph.save_on_cpu, pinned
    overlapped      bench/overlapped.py: all saves leave and come back on streams of their own
    POLICY[@SHARE]  one of ours, in so much of the plain step's requested peak; with a ! after it
                    nobody looks on in forward (`assume_constant`)

Each method trains a model of its own, and ends after `--seconds` (20): what it has by then is its
line. A policy's line whose step time is more than 10 % from the predicted one says in "explained"
where the time went, in three more steps that are clocked. A method that fails is a line with
"error". `check` trains small models for some steps and compares losses, parameters and buffers with
plain training, bit by bit.
"""

import argparse
import gc
import json
import math
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import date
from functools import partial
from itertools import pairwise
from typing import Any

import msgspec
import torch
from carried import carried
from overlapped import Overlapped
from timing import CUDA, timed
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

import superneurons.zoo as zoo
from superneurons.executor import Executor
from superneurons.executor.plan import Plan
from superneurons.executor.run import taken_by
from superneurons.machines import Machine
from superneurons.policies import Decision
from superneurons.reports import explain
from superneurons.reports.explanation import TIME_PERCENT
from superneurons.sim import foresee, play
from superneurons.traces import Trace, find_trace, shipped
from superneurons.zoo.step import Step

DEVICE = torch.device("cuda" if CUDA else "cpu")
PEER = "cuda:1" if torch.cuda.device_count() > 1 else None
PLAIN = ("plain", "plain again")
RIVALS = ("checkpoint", "sqrt", "selective", "save_on_cpu", "overlapped")
# Everything that autograd keeps, not the paper's checkpoints alone.
ALL = "conv/matmul/attention/norm/activation/dropout/add/elementwise/pool/embedding/concat/loss"
CHEAP = "recompute:kinds=conv/matmul/attention/embedding/add/fork/concat/loss"
LARGE = "kinds=conv/matmul/attention/embedding/add/fork/concat/pool/loss"
EARLY = "norm/pool/matmul/elementwise/loss"  # a convolution's result runs again from the one before
BLOCKS = "recompute:strategy=speed,kinds"
OURS = ("liveness", "liveness+recompute:strategy=speed", "superneurons@0.6")
# Found by simulating the recordings, for one kind of network, by the beginning of its name: cheap
# operations computed again, the results of blocks alone kept, and as much sent away as is hidden;
# where a step waits for its host, only what is large runs again.
ALSO = {
    "resnet50": (
        f"liveness+recompute:strategy=speed,least=20MB,{LARGE}",
        f"liveness+offload:kinds=norm,most=900MB,least=30MB,lookahead=60+recompute:strategy=speed,least=20MB,{LARGE}",
        "liveness+offload:kinds=norm,most=900MB,least=1MiB,lookahead=60+recompute:strategy=speed",
        f"liveness+{BLOCKS}={EARLY}",
        f"liveness+{BLOCKS}=pool/add/loss",
        f"liveness+offload:kinds=pool/add,most=900MB,least=1MiB,lookahead=60+{BLOCKS}=pool/add/loss",
    ),
    "resnet": (  # 16 images: the host is what a step waits for
        f"liveness+{BLOCKS}={EARLY},least=5MB,most=500MB",
        f"liveness+{BLOCKS}={EARLY},least=5MB,most=1GB",
        f"liveness+{BLOCKS}={EARLY},least=5MB,most=1500MB",
        f"liveness+{BLOCKS}={EARLY},least=5MB,most=1500MB!",
        f"liveness+{BLOCKS}={EARLY},least=5MB,most=2GB",
        f"liveness+{BLOCKS}={EARLY}",
        f"liveness+{BLOCKS}=pool/add/loss",
    ),
    "gpt": (
        "liveness+offload:most=4GB,lookahead=200",
        f"liveness+{CHEAP}",
        f"liveness+offload:most=4GB,lookahead=200+{CHEAP}",
        f"liveness+{BLOCKS}=embedding/add/loss",
        f"liveness+offload:kinds=attention/add,most=4GB,lookahead=100+{BLOCKS}=embedding/add/loss",
    ),
    "bert": (
        f"liveness+{CHEAP}",
        f"liveness+{BLOCKS}=embedding/add/loss",
        "liveness+offload:kinds=attention/add,most=2GB,least=1MiB,lookahead=60"
        f"+{BLOCKS}=embedding/add/loss",
    ),
    "unet": (
        f"liveness+{BLOCKS}=pool/concat",
        f"liveness+offload:kinds=pool/concat,most=2GB,lookahead=20+{BLOCKS}=pool/concat",
    ),
}
WARM = 2
CLOCKED = 3  # where the step time is another than predicted
PINNED_NBYTES = 32 << 30
"""More pinned memory is given back between methods; less is kept, for pinning takes long."""

aten = torch.ops.aten
SAVED = [  # overloads: a name without one never matches
    aten.convolution.default,
    aten.mm.default,
    aten.addmm.default,
    aten.bmm.default,
    aten.baddbmm.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
]


def main() -> None:
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("model")
    parser.add_argument("rest", nargs="*", metavar="BATCH METHOD")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--small", action="store_true", help="try it out with small networks")
    asked = parser.parse_intermixed_args()
    if asked.model == "check":
        lines = check(asked.rest or list(SMALL))
    else:
        batch, *methods = asked.rest
        build = partial(make, asked.model, **sizes_of(asked.model, int(batch), small=asked.small))
        also = next((ALSO[each] for each in ALSO if asked.model.startswith(each)), ())
        methods = methods or [*RIVALS, *OURS, *also]
        lines = measure(build, methods, asked.seconds, recording_of(asked.model, batch))
        lines = ({"model": asked.model, "batch": int(batch)} | line for line in lines)
    about = {
        "date": date.today().isoformat(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "gpu": torch.cuda.get_device_name() if CUDA else "none",
        "cudnn": torch.backends.cudnn.version() if CUDA else None,
    }
    for line in lines:
        print(json.dumps(line | about), flush=True)


def make(name: str, **sizes: int) -> Step:
    """Build a model of the zoo on the device; `resnet314` is one of 314 layers, and what ends with
    `_sgd` is trained without states of an optimizer."""
    depth = name.removeprefix("resnet")
    with torch.device(DEVICE):
        if depth.isdecimal() and name != "resnet50":
            return zoo.resnet(6, 32, blocks_of(int(depth)), 6, **sizes)
        step: Step = getattr(zoo, name.removesuffix("_sgd"))(**sizes)
    return without_states(step) if name.endswith("_sgd") else step


def sizes_of(model: str, batch: int, *, small: bool) -> dict[str, int]:
    """Return what to build a model with: the batch, or what makes it small."""
    if small and model not in SMALL:
        raise SystemExit(f"there is no small {model}: --small has {', '.join(SMALL)}")
    return SMALL[model] if small else {"batch": batch}


def without_states(step: Step) -> Step:
    """Return the same step, updated by plain SGD."""
    optimizer = torch.optim.SGD(step.model.parameters(), lr=0.1)
    return Step(step.model, optimizer, step.inputs, step.targets, step.criterion, step.clip)


def recording_of(model: str, batch: int | str) -> str:
    """Return the name of the recording that has times for a model."""
    deep = model.startswith("resnet") and model != "resnet50"
    return "resnet50-b128" if deep else f"{model.replace('_', '-')}-b{batch}"


def blocks_of(depth: int) -> int:
    """Return n3 of the resnet(6, 32, n3, 6) that has so many layers, or the next more."""
    return max(1, math.ceil((depth - 2) / 3) - 44)


# -- what users have today -------------------------------------------------------------------------


def rival(name: str, step: Step) -> Callable[[], None]:
    """Change a fresh model from outside as *name* says; return what runs a step of it."""
    around: Callable[[], AbstractContextManager[Any]] = nullcontext
    if name in ("checkpoint", "selective"):
        options: dict[str, Any] = {"use_reentrant": False}
        if name == "selective":
            options["context_fn"] = partial(create_selective_checkpoint_contexts, SAVED)
        for block in blocks(step.model):
            block.forward = partial(checkpoint, block.forward, **options)
    elif name == "sqrt":
        segment(step.model)
    elif name == "save_on_cpu":
        around = partial(torch.autograd.graph.save_on_cpu, pin_memory=CUDA)
    elif name == "overlapped":
        offload = Overlapped(DEVICE, step.model.parameters())
        around = partial(_entered, offload)
    elif name not in PLAIN:
        raise ValueError(f"no method {name!r}")

    def run() -> None:
        with around():
            step()

    return run


@contextmanager
def _entered(offload: Overlapped) -> Iterator[None]:
    with offload:
        yield


def blocks(model: nn.Module) -> list[nn.Module]:
    """Return the blocks of a model of the zoo: what people wrap in a checkpoint."""
    found: Any = model
    if hasattr(model, "stages"):
        return [block for stage in found.stages for block in stage]
    if hasattr(model, "ups"):  # per level: the double convolution, with what pools or joins before
        return [found.first, *found.downs, *found.ups]
    return list(found.blocks if hasattr(model, "blocks") else found.layers)


class _Segment(nn.Module):
    """Some blocks in a row, computed again as one."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.Sequential(*members)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = checkpoint(self.members, x, use_reentrant=False)
        return out


def segment(model: nn.Module) -> None:
    """Put a checkpoint around each of about sqrt(N) runs of blocks."""
    found: Any = model
    chain = blocks(model)
    number = round(math.sqrt(len(chain)))
    cuts = [len(chain) * i // number for i in range(number + 1)]
    runs = [chain[a:b] for a, b in pairwise(cuts)]
    if hasattr(model, "ups"):
        found.forward = partial(_unet, model, runs)
        return
    name = next(each for each in ("stages", "blocks", "layers") if hasattr(model, each))
    setattr(model, name, nn.Sequential(*map(_Segment, runs)))


def _unet(model: Any, runs: Sequence[Sequence[nn.Module]], images: Tensor) -> Tensor:
    """The U-Net's forward in segments: each hands on x and the skips that are needed still."""
    ups = set(model.ups)

    def through(run: Sequence[nn.Module], x: Tensor, *skips: Tensor) -> tuple[Tensor, ...]:
        for level in run:
            if level in ups:
                x, *skips = level(x, skips[0]), *skips[1:]  # type: ignore[assignment]
            elif level is model.first:
                x = level(x)
            else:
                x, *skips = level(x), x, *skips  # type: ignore[assignment]
        return x, *skips

    state: tuple[Tensor, ...] = (images,)
    for run in runs:
        state = checkpoint(partial(through, run), *state, use_reentrant=False)
    logits: Tensor = model.last(state[0])
    return logits


# -- times and bytes -------------------------------------------------------------------------------


def measure(
    build: Callable[[], Step], methods: Sequence[str], seconds: float, like: str
) -> Iterator[dict[str, Any]]:
    """Yield a line for plain steps, and one for each other method."""
    plain: dict[str, Any] = {}
    for method in ("plain", *(each for each in methods if each not in PLAIN), "plain again"):
        name, _, share = method.partition("@")
        line: dict[str, Any] = {"method": method, "budget": None}
        deadline = time.perf_counter() + seconds
        try:
            if share:
                line["budget"] = int(plain["requested_peak"] * float(share))
            if name in (*RIVALS, *PLAIN):
                line |= timed(rival(name, build()), deadline, WARM)
                line["pinned_nbytes"] = pinned_nbytes()
            else:
                line |= ours(name, line["budget"], build(), deadline, like)
            if method == "plain":
                plain = line
            elif "step_ns" in plain:
                line["slower"] = round(line["step_ns"] / plain["step_ns"] - 1, 4)
                if CUDA:
                    line["peak_less"] = round(
                        1 - line["requested_peak"] / plain["requested_peak"], 4
                    )
        except Exception as error:  # one must not cost the others
            line["error"] = f"{type(error).__name__}: {error}"[:400]
        line["seconds"] = round(time.perf_counter() - deadline + seconds, 1)
        yield line
        clear()


def executor_of(
    policy: str, budget: int | None = None, times: Trace | str | None = None
) -> Executor:
    """Return an executor by a policy: one with ! does without looking at forward, and one that
    sends to the peer has the next GPU for it."""
    return Executor(
        policy.removesuffix("!"),
        budget=budget,
        device=DEVICE,
        peer=PEER if "tier=peer" in policy else None,
        times=times,
        assume_constant=policy.endswith("!"),
    )


def ours(
    policy: str, budget: int | None, step: Callable[[], object], deadline: float, like: str
) -> dict[str, Any]:
    """Return what a policy costs, beside what its plan says."""
    executor = executor_of(policy, budget, like if like in shipped() else None)
    if budget is not None:
        executor.backend.hold_to(budget)

    def run() -> None:
        with executor.step():
            step()

    found = timed(run, deadline, 3)  # two are recorded, one warms up
    report = executor.report
    assert report is not None
    found |= {
        "mode": report.mode,
        "why": report.why,
        "done": report.done,
        "copied_out": report.copied_out_nbytes,
        "copied_in": report.copied_in_nbytes,
        "late": report.late_fetches,
        "not_freed": report.not_freed_nbytes,
        "stall_ns": report.stall_ns,
        "pinned_nbytes": sum(each.held_nbytes for each in executor.slabs.values()),
        "notices": executor.notices,
    }
    if executor.plans:
        found["predicted"] = predicted(executor, like)
        found["replays"] = found["predicted"]["replays"]
        expected = found["predicted"]["step_ns"]
        if expected and abs(found["step_ns"] / expected - 1) > TIME_PERCENT / 100:
            found["explained"] = explained(executor, run, like)
    return found


def predicted(executor: Executor, like: str) -> dict[str, Any]:
    """Return what the simulator says of the schedule that is executed."""
    plan = executor.plans[0]
    trace, machine, times = simulated(executor, plan, like)
    report = play(trace, Decision(plan.schedule, plan.ledger), machine)
    taken = taken_by(plan, report)
    return {
        "step_ns": report.step_time_ns,
        "requested_peak": report.device_peak_bytes,
        "allocated_peak": taken.allocated_nbytes,
        "reserved_peak": taken.reserved_nbytes,
        "replays": report.recomputed_ops,
        "replayed_ns": report.recomputed_ns,
        "stall_ns": report.stall_ns,
        "times": times,
        "allocator": machine.allocator,
    }


def simulated(executor: Executor, plan: Plan, like: str) -> tuple[Trace, Machine, str]:
    """Return what the simulator plays, and whose times those are.

    The executor records no times: they are those of the shipped recording *like*, if it is there.
    """
    trace, times = plan.proved, str(plan.trace.times)
    allocator = executor.backend.allocator
    machine = msgspec.structs.replace(executor.machine, allocator=allocator)
    if times != "measured" and like in shipped():
        times = like
        trace = carried(find_trace(like), trace, machine, memory=False)
    return trace, machine, times


def explained(executor: Executor, run: Callable[[], None], like: str) -> dict[str, Any]:
    """Clock a few more steps; return where their time is not the simulated one, in short."""
    executor.clock = True
    clocked = []
    for _ in range(CLOCKED):
        run()
        if executor.clocked is not None:
            clocked.append(executor.clocked)
    executor.clock = False
    if not clocked:
        return {"why": "no step ran by its schedule to the end"}
    plan = clocked[-1].plan
    trace, machine, _ = simulated(executor, plan, like)
    steps = [each.stretches for each in clocked if each.plan is plan]
    found = explain(trace, foresee(trace, plan.schedule, machine), steps)
    return {
        "simulated_ns": found.simulated_ns,
        "measured_ns": found.measured_ns,
        "clocked_ns": found.clocked_ns,
        "by_cause": found.by_cause,
        "by_phase": found.by_phase,
        "largest": [
            {
                "first": each.operations[0] if each.operations else "",
                "operations": len(each.operations),
                "simulated_ns": each.simulated_ns,
                "measured_ns": each.measured_ns,
                "cause": each.cause,
            }
            for each in found.largest(5)
        ],
    }


def pinned_nbytes() -> int:
    """Return what torch's own allocator of pinned memory has, as far as it tells."""
    stats: dict[str, int] = getattr(torch.cuda, "host_memory_stats", dict)() if CUDA else {}
    return int(stats.get("allocated_bytes.current", 0))


def clear() -> None:
    gc.collect()
    if CUDA:
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(1.0)
        if pinned_nbytes() > PINNED_NBYTES:
            torch._C._host_emptyCache()


# -- the same training -----------------------------------------------------------------------------

SMALL: dict[str, dict[str, int]] = {
    "resnet50": {"batch": 4, "image": 64},
    "resnet161": {"batch": 2, "image": 32, "width": 4},
    "gpt": {"batch": 1, "length": 64, "layers": 4, "width": 128, "heads": 4, "vocabulary": 100},
    "bert": {"batch": 2, "length": 32, "layers": 4},
    "unet": {"batch": 1, "size": 64},
}
STEPS = 3


def check(models: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield for each small model and method what is not as in plain training."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    for model in models:
        control = trained(model, "plain")
        for method in ("plain", *RIVALS, "liveness", f"liveness+offload:kinds={ALL}"):
            line: dict[str, Any] = {"model": model, "sizes": SMALL[model], "method": method}
            try:
                found = trained(model, method)
                line["losses"] = found["losses"].tolist()
                line["losses_equal"] = torch.equal(control["losses"], found["losses"])
                line["different"] = {
                    kind: sum(
                        not torch.equal(ours, theirs)
                        for ours, theirs in zip(found[kind], control[kind], strict=True)
                    )
                    for kind in ("parameters", "buffers")
                }
            except Exception as error:
                line["error"] = f"{type(error).__name__}: {error}"[:400]
            yield line
            clear()


def trained(model: str, method: str) -> dict[str, Any]:
    """Train for some steps; return losses, parameters and buffers."""
    losses: list[Tensor] = []
    torch.manual_seed(0)
    plain = make(model, **SMALL[model])

    def criterion(output: Tensor, targets: Tensor) -> Tensor:
        loss = plain.criterion(output, targets)
        losses.append(loss.detach().clone())
        return loss

    step = Step(plain.model, plain.optimizer, plain.inputs, plain.targets, criterion, plain.clip)
    parameters, buffers = list(step.model.parameters()), list(step.model.buffers())
    torch.manual_seed(1)
    if method in (*RIVALS, "plain"):
        run = rival(method, step)
        for _ in range(STEPS):
            run()
    else:
        executor = Executor(method, device=DEVICE)
        for _ in range(STEPS):
            with executor.step():
                step()
    return {
        "losses": torch.stack(losses),
        "parameters": [each.detach().clone() for each in parameters],
        "buffers": [each.clone() for each in buffers],
    }


if __name__ == "__main__":
    main()
