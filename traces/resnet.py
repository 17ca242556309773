"""ResNet as the paper trains it: bottleneck blocks between forks and joins, to any depth."""

from typing import Final

import msgspec

from ..errors import InvalidInput
from .cudnn import Algorithms, named
from .layers import Network
from .model import Trace
from .step import Graph, training_step

Blocks = tuple[int, int, int, int]
"""Bottleneck blocks of each of the four stages: n1, n2, n3, n4."""

_CHANNELS: Final = (64, 128, 256, 512)
_TABLE_4: Final = (6, 32, 6)
"""n1, n2 and n4 of the paper's Table 4, which varies n3 alone."""


def resnet50(
    batch: int = 32, image: int = 227, graph: Graph = "release", algorithms: Algorithms = "none"
) -> Trace:
    """The paper's ResNet50 (Fig. 2, 8, 11, 14; Tables 1, 2, 5): 25,557,032 parameters.

    192 layers, `data` among them. *graph*: whose forks and joins, the release's (copies) or the
    paper's (in place).
    *algorithms*: cudnn gives each convolution those of its era, with workspaces.
    """
    return _trace("resnet50", (3, 4, 6, 3), batch, image, graph, algorithms)


def resnet101(
    batch: int = 32, image: int = 227, graph: Graph = "release", algorithms: Algorithms = "none"
) -> Trace:
    """The paper's ResNet101 (Fig. 2, 8, 11, 14; Tables 1, 2, 5): 44,549,160 parameters.

    379 layers, `data` among them. *graph*: whose forks and joins, the release's (copies) or the
    paper's (in place).
    *algorithms*: cudnn gives each convolution those of its era, with workspaces.
    """
    return _trace("resnet101", (3, 4, 23, 3), batch, image, graph, algorithms)


def resnet152(
    batch: int = 32, image: int = 227, graph: Graph = "release", algorithms: Algorithms = "none"
) -> Trace:
    """The paper's ResNet152 (Fig. 2, 8, 11, 14; Tables 2, 4, 5): 60,192,808 parameters.

    566 layers, `data` among them. *graph*: whose forks and joins, the release's (copies) or the
    paper's (in place).
    *algorithms*: cudnn gives each convolution those of its era, with workspaces.
    """
    return _trace("resnet152", (3, 8, 36, 3), batch, image, graph, algorithms)


def resnet(
    n1: int | None = None,
    n2: int | None = None,
    n3: int | None = None,
    n4: int | None = None,
    depth: int | None = None,
    batch: int = 16,
    image: int = 227,
    graph: Graph = "release",
    algorithms: Algorithms = "none",
) -> Trace:
    """A ResNet of n1 to n4 blocks in its stages, or of a depth as in Table 4.

    The depth is 3 (n1 + n2 + n3 + n4) + 2. Asked for a *depth*, it has the paper's n1=6, n2=32,
    n4=6 and the n3 that comes nearest without going above. The trace's notes say how deep it is.
    *graph*: whose forks and joins, the release's (copies) or the paper's (in place).
    *algorithms*: cudnn gives each convolution those of its era, with workspaces.
    """
    given = {"n1": n1, "n2": n2, "n3": n3, "n4": n4}
    if depth is None:
        blocks = _all_of(given)
        reason = ""
    elif any(n is not None for n in given.values()):
        raise InvalidInput("resnet: both a depth and blocks are given; give depth, or n1 to n4")
    else:
        blocks = _blocks_of(depth)
        reason = f", the nearest not above {depth} with the n1, n2 and n4 of the paper's Table 4"
    parameters = "".join(f"{key}={n}," for key, n in zip(given, blocks, strict=True))
    trace = _trace("resnet", blocks, batch, image, graph, algorithms, parameters)
    note = {"depth": f"{_depth(blocks)}{reason}"}
    return msgspec.structs.replace(trace, notes=note | trace.notes)


def residual_network(name: str, blocks: Blocks, batch: int, image: int) -> Network:
    """Return the layers of a ResNet for square images of *image* pixels a side, in fp32.

    Convolutions have no bias; the first block of every stage has a convolution in its shortcut,
    and from the second stage on it halves the image. Raises InvalidInput for an empty stage.
    """
    if min(blocks) < 1:
        stage = blocks.index(min(blocks)) + 1
        raise InvalidInput(
            f"{name}: stage {stage} has {min(blocks)} blocks (n{stage}); give at least 1"
        )
    net = Network(name, batch, (3, image, image))
    x = net.conv("data", "conv1", 64, 7, stride=2, padding=3, bias=False)
    x = net.pool(net.relu(net.bn(x, "bn1"), "relu1"), "pool1", 3, 2)
    for stage, (count, channels) in enumerate(zip(blocks, _CHANNELS, strict=True), 1):
        for block in range(1, count + 1):
            first = block == 1
            stride = 2 if first and stage > 1 else 1
            x = _bottleneck(net, x, f"stage{stage}.block{block}", channels, stride, first)
    x = net.pool(x, "pool5", net.shape(x)[-1], 1)  # the average of all that is left, 7 x 7 at 227
    net.softmax(net.fc(x, "fc", 1000), "softmax")
    return net


def _bottleneck(
    net: Network, source: str, name: str, channels: int, stride: int, first: bool
) -> str:
    """Add one block; the main branch is drawn first, so that it runs first, as in the release."""
    fork = net.fork(source, f"{name}.fork")
    x = net.conv(fork, f"{name}.conv1", channels, 1, stride=stride, bias=False)
    x = net.relu(net.bn(x, f"{name}.bn1"), f"{name}.relu1")
    x = net.conv(x, f"{name}.conv2", channels, 3, padding=1, bias=False)
    x = net.relu(net.bn(x, f"{name}.bn2"), f"{name}.relu2")
    x = net.bn(net.conv(x, f"{name}.conv3", 4 * channels, 1, bias=False), f"{name}.bn3")
    shortcut = fork
    if first:
        shortcut = net.conv(
            fork, f"{name}.shortcut.conv", 4 * channels, 1, stride=stride, bias=False
        )
        shortcut = net.bn(shortcut, f"{name}.shortcut.bn")
    return net.relu(net.join((shortcut, x), f"{name}.join"), f"{name}.relu")


def _trace(
    name: str,
    blocks: Blocks,
    batch: int,
    image: int,
    graph: Graph,
    algorithms: Algorithms,
    parameters: str = "",
) -> Trace:
    full = f"{name}:{parameters}batch={batch},image={image},graph={graph}" + named(algorithms)
    return training_step(residual_network(name, blocks, batch, image), full, graph, algorithms)


def _depth(blocks: Blocks) -> int:
    return 3 * sum(blocks) + 2


def _blocks_of(depth: int) -> Blocks:
    """Return the blocks of the deepest network of Table 4 that is not deeper than *depth*."""
    n1, n2, n4 = _TABLE_4
    least = _depth((n1, n2, 1, n4))
    if depth < least:
        raise InvalidInput(
            f"resnet: a depth of {depth} is below {least}, the least with n1={n1}, n2={n2}, "
            f"n4={n4}; give n1 to n4 instead"
        )
    return n1, n2, (depth - 2) // 3 - n1 - n2 - n4, n4


def _all_of(given: dict[str, int | None]) -> Blocks:
    missing = [key for key, n in given.items() if n is None]
    if missing:
        raise InvalidInput(f"resnet: no {' and no '.join(missing)}; give n1 to n4, or a depth")
    n1, n2, n3, n4 = (n for n in given.values() if n is not None)
    return n1, n2, n3, n4
