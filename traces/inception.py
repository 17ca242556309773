"""InceptionV4 as the paper trains it: 149 convolutions in modules of parallel branches."""

from typing import Final, Literal

from msgspec import Struct

from .cudnn import Algorithms, named
from .layers import Network
from .model import Trace
from .step import Graph, training_step

Norm = Literal["everywhere", "released"]
"""After which convolutions a batch normalization stands: all, as the paper's figures need, or only
the first, as in the release, where the others are commented out."""


class _Conv(Struct, frozen=True):
    """A convolution without bias, its normalization if it has one, and a ReLU.

    It keeps the size of the image but for its stride, unless *shrink*: then it has no padding.
    """

    channels: int
    kernel: int | tuple[int, int]
    stride: int = 1
    shrink: bool = False


class _Pool(Struct, frozen=True):
    """A pooling of 3 x 3, maximum or average."""

    stride: int
    padding: int


# A branch is a chain; it may end in branches of its own, whose ends the concat takes one by one.
_Branch = tuple["_Conv | _Pool | _Branches", ...]
_Branches = list[_Branch]


def _halving(channels: int) -> _Conv:
    return _Conv(channels, 3, stride=2, shrink=True)


_HALVE: Final = _Pool(stride=2, padding=0)
_AVERAGE: Final = _Pool(stride=1, padding=1)
_SPLIT: Final[_Branches] = [(_Conv(256, (1, 3)),), (_Conv(256, (3, 1)),)]

_STEM: Final = (_halving(32), _Conv(32, 3, shrink=True), _Conv(64, 3))
_STEM_1: Final[_Branches] = [(_halving(96),), (_HALVE,)]
_STEM_2: Final[_Branches] = [
    (_Conv(64, 1), _Conv(96, 3, shrink=True)),
    (_Conv(64, 1), _Conv(64, (1, 7)), _Conv(64, (7, 1)), _Conv(96, 3, shrink=True)),
]
_STEM_3: Final[_Branches] = [(_halving(192),), (_HALVE,)]
_A: Final[_Branches] = [
    (_Conv(96, 1),),
    (_Conv(64, 1), _Conv(96, 3)),
    (_Conv(64, 1), _Conv(96, 3), _Conv(96, 3)),
    (_AVERAGE, _Conv(96, 1)),
]
_REDUCTION_A: Final[_Branches] = [
    (_halving(384),),
    (_Conv(192, 1), _Conv(224, 3), _halving(256)),
    (_HALVE,),
]
_B: Final[_Branches] = [
    (_Conv(384, 1),),
    (_Conv(192, 1), _Conv(224, (1, 7)), _Conv(256, (7, 1))),
    (
        _Conv(192, 1),
        _Conv(192, (7, 1)),
        _Conv(224, (1, 7)),
        _Conv(224, (7, 1)),
        _Conv(256, (1, 7)),
    ),
    (_AVERAGE, _Conv(128, 1)),
]
_REDUCTION_B: Final[_Branches] = [
    (_Conv(192, 1), _halving(192)),
    (_Conv(256, 1), _Conv(256, (1, 7)), _Conv(320, (7, 1)), _halving(320)),
    (_HALVE,),
]
_C: Final[_Branches] = [
    (_Conv(256, 1),),
    (_Conv(384, 1), _SPLIT),
    (_Conv(384, 1), _Conv(448, (3, 1)), _Conv(512, (1, 3)), _SPLIT),
    (_AVERAGE, _Conv(256, 1)),
]
_MODULES: Final = {
    "stem1": _STEM_1,
    "stem2": _STEM_2,
    "stem3": _STEM_3,
    **{f"a{i}": _A for i in range(1, 5)},
    "reduction_a": _REDUCTION_A,
    **{f"b{i}": _B for i in range(1, 8)},
    "reduction_b": _REDUCTION_B,
    **{f"c{i}": _C for i in range(1, 4)},
}


def inceptionv4(
    batch: int = 32,
    image: int = 299,
    norm: Norm = "everywhere",
    graph: Graph = "release",
    algorithms: Algorithms = "none",
) -> Trace:
    """The paper's InceptionV4 (Fig. 2, 8, 11, 14; Tables 2, 5): 42,679,816 parameters.

    *norm*: a batch normalization after each of the 149 convolutions, as the paper's figures need
    (514 layers, `data` among them), or, as released, after the first alone. *graph*: whose forks,
    the release's (copies) or the paper's (in place). *algorithms*: cudnn gives each convolution
    those of its era, with workspaces.
    """
    name = f"inceptionv4:batch={batch},image={image},norm={norm},graph={graph}" + named(algorithms)
    return training_step(inception_network(batch, image, norm), name, graph, algorithms)


def inception_network(batch: int, image: int, norm: Norm) -> Network:
    """Return the layers of InceptionV4 for square images of *image* pixels a side, in fp32."""
    net = Network("inceptionv4", batch, (3, image, image))
    draw = _Drawing(net, norm)
    x = draw.chain("data", "stem", _STEM)[0]
    for name, branches in _MODULES.items():
        x = net.concat(tuple(draw.fan(x, name, branches)), f"{name}.concat")
    x = net.pool(x, "pool", net.shape(x)[-1], 1)  # the average of all that is left, 8 x 8 at 299
    net.softmax(net.fc(net.dropout(x, "drop"), "fc", 1000), "softmax")
    return net


class _Drawing:
    """Branches drawn into a network, each layer named after where it stands."""

    def __init__(self, net: Network, norm: Norm) -> None:
        self._net = net
        self._norm = norm

    def fan(self, source: str, name: str, branches: _Branches) -> list[str]:
        """Draw parallel branches behind a fork; return their ends."""
        fork = self._net.fork(source, f"{name}.fork")
        return [
            end
            for i, branch in enumerate(branches, 1)
            for end in self.chain(fork, f"{name}.branch{i}", branch)
        ]

    def chain(self, source: str, name: str, branch: _Branch) -> list[str]:
        """Draw one branch; return its end, or its ends if it splits."""
        for i, part in enumerate(branch, 1):
            if isinstance(part, _Conv):
                source = self._conv(source, f"{name}.{i}", part)
            elif isinstance(part, _Pool):
                source = self._net.pool(source, f"{name}.{i}.pool", 3, part.stride, part.padding)
            else:
                return self.fan(source, f"{name}.{i}", part)
        return [source]

    def _conv(self, source: str, name: str, conv: _Conv) -> str:
        net = self._net
        height, width = conv.kernel if isinstance(conv.kernel, tuple) else (conv.kernel,) * 2
        padding = (0, 0) if conv.shrink else (height // 2, width // 2)
        first = source == "data"
        x = net.conv(
            source, f"{name}.conv", conv.channels, conv.kernel, conv.stride, padding, bias=False
        )
        if first or self._norm == "everywhere":
            x = net.bn(x, f"{name}.bn")
        return net.relu(x, f"{name}.relu")
