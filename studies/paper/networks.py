"""The paper's networks by name, and what it counts of them: whole networks and shares by type."""

from collections import Counter
from functools import cache
from typing import Final

from ...traces import Trace, find_trace

NETWORKS: Final = (
    "alexnet",
    "vgg16",
    "vgg19",
    "inceptionv4",
    "resnet50",
    "resnet101",
    "resnet152",
)
TITLES: Final = {
    "alexnet": "AlexNet",
    "vgg16": "VGG16",
    "vgg19": "VGG19",
    "inceptionv4": "InceptionV4",
    "resnet50": "ResNet50",
    "resnet101": "ResNet101",
    "resnet152": "ResNet152",
}
_LAYER_TYPES: Final = {
    "conv": "conv",
    "matmul": "fc",
    "dropout": "dropout",
    "loss": "softmax",
    "pool": "pool",
    "activation": "act",
}
LAYER_TYPES: Final = ("conv", "fc", "dropout", "softmax", "pool", "act", "bn", "lrn")
"""The eight types of Figure 8; forks, joins and concatenations are left out there."""


@cache
def network(name: str, batch: int, **parameters: str) -> Trace:
    """Return a network of the paper as a trace; parameters that it does not have are left out."""
    known = {"graph": name not in ("alexnet", "vgg16", "vgg19")}
    given = [f"{key}={value}" for key, value in parameters.items() if known.get(key, True)]
    return find_trace(f"{name}:" + ",".join([f"batch={batch}", *given]))


def data_nbytes(trace: Trace) -> int:
    """Return the bytes of all outputs and gradients: what the paper calls DATA."""
    facts = trace.facts
    return sum(n for n, data in zip(facts.nbytes, facts.scheduled, strict=True) if data)


def network_nbytes(trace: Trace) -> int:
    """Return what Figure 2 counts: outputs, gradients, and the parameters with what is beside them.

    To a trace's parameters, gradients and momenta come, each three times, the two running
    statistics of every normalized channel and, three times, the bias that the release gives the
    convolution before it and never uses.
    """
    beside = sum(s.nbytes for s in trace.storages if s.alive_at_start and s.kind != "input")
    return data_nbytes(trace) + beside + (2 + 3) * _normalized_channels(trace) * 4


def _normalized_channels(trace: Trace) -> int:
    """Return the channels of all batch normalizations: each has a scale and a shift."""
    made = {s.name: s.nbytes for s in trace.storages if s.kind == "parameter"}
    norms = [op for op in trace.operations if op.kind == "norm" and op.phase == "forward"]
    return sum(made.get(name, 0) for op in norms for name in op.reads) // 4 // 2


def layer_type(trace: Trace, op: int) -> str:
    """Return which of the eight types of Figure 8 an operation is of; "" for none."""
    operation = trace.operations[op]
    if operation.kind == "norm":
        return "lrn" if operation.module.startswith("lrn") else "bn"
    return _LAYER_TYPES.get(operation.kind, "")


def memory_shares(trace: Trace) -> dict[str, float]:
    """Return the percentage of each layer type in the sum of all dependency lists (Fig. 8b).

    A storage counts once in each list that it stands on; the release has an LRN's gradient twice
    on the list of its backward.
    """
    facts = trace.facts
    parts: Counter[str] = Counter()
    for i, op in enumerate(trace.operations):
        kind = layer_type(trace, i)
        listed = [*facts.reads[i], *facts.fresh[i]]
        if kind == "lrn" and op.phase == "backward":
            listed += facts.overwrites[i]
        parts[kind] += sum(facts.nbytes[s] for s in listed if facts.scheduled[s])
    del parts[""]
    return {kind: 100 * parts[kind] / parts.total() for kind in LAYER_TYPES if parts[kind]}
