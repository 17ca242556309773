"""Two processes that train together, each under an executor of its own: bitwise as without one."""

import pytest

torch = pytest.importorskip("torch")

import torch.distributed as dist  # noqa: E402
import torch.multiprocessing as mp  # noqa: E402
from torch import nn  # noqa: E402

STEPS = 6
AGAIN = "liveness+recompute:strategy=memory,kinds=fork"


def train(rank, device, runs, **options):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 32), nn.BatchNorm1d(32), nn.Sigmoid(), nn.Dropout(0.2), nn.Linear(32, 3)
    ).to(device)
    replica = nn.parallel.DistributedDataParallel(model, **options)
    optimizer = torch.optim.Adam(replica.parameters(), lr=0.01)
    batches = torch.randn(STEPS, 2, 8, 6, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(2 + rank)
    for batch in batches:
        x = batch[rank].to(device)
        if runs is None:
            step(replica, optimizer, x)
        else:
            with runs.step(x):
                step(replica, optimizer, x)
    grads = [(name, p.grad) for name, p in model.named_parameters()]
    random = torch.get_rng_state() if device.type == "cpu" else torch.cuda.get_rng_state(device)
    return [*model.state_dict().items(), *grads, ("random", random)]


def step(replica, optimizer, x):
    optimizer.zero_grad()
    replica(x).pow(2).mean().backward()
    optimizer.step()


def work(rank, port, collectives, results):
    from training import MACHINE, SLAB_NBYTES, Everything, different

    from superneurons.executor import Executor

    device = torch.device("cpu" if collectives == "gloo" else f"cuda:{rank}")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    dist.init_process_group(collectives, f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    try:
        for options in ({}, {"gradient_as_bucket_view": True}):
            plain = train(rank, device, None, **options)
            for policy in (AGAIN, Everything()):
                runs = Executor(policy, machine=MACHINE, device=device, slab_nbytes=SLAB_NBYTES)
                found = different(train(rank, device, runs, **options), plain)
                done = runs.report.replays if policy is AGAIN else runs.report.done
                results.put((rank, found, runs.report.mode, done, runs.notices))
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(
    "collectives",
    [
        "gloo",
        pytest.param(
            "nccl",
            marks=[
                pytest.mark.gpu,
                pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
            ],
        ),
    ],
)
def test_two_processes_train_as_without_an_executor(collectives, unused_port, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as deterministic algorithms want it
    context = mp.get_context("spawn")
    results = context.SimpleQueue()
    mp.spawn(work, (unused_port, collectives, results), nprocs=2)
    for _ in range(8):
        _, different, mode, done, notices = results.get()
        assert (different, mode) == ([], "executed")
        if isinstance(done, int):  # operations run again
            assert done > 3
            # Once DDP looks for its buckets anew, and forward has other operators.
            assert all("of forward is" in notice for notice in notices)
        else:
            assert notices == []
            assert done["copy"] >= done["fetch"] == done["gone"] > 1


@pytest.fixture
def unused_port():
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
