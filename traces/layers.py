"""Layer graphs: a network written down layer by layer, turned into a step as the paper does.

Each layer owns its output and, in backward, the gradient of its input; what a layer's backward
needs and which gradients are written in place is the released code's dependency list, layer kind
by layer kind (`LAYER_KINDS`). All numbers are fp32, images are NCHW.
"""

from math import prod
from typing import Final

from msgspec import Struct

from ..errors import InvalidInput
from .cudnn import Window

Shape = tuple[int, ...]


class LayerKind(Struct, frozen=True):
    """What a layer's backward reads; *in_place*: it writes over the gradient it is given."""

    op: str
    reads_input: bool = False
    reads_output: bool = False
    in_place: bool = False


LAYER_KINDS: Final = {
    "conv": LayerKind("conv", reads_input=True),
    "fc": LayerKind("matmul", reads_input=True),
    "pool": LayerKind("pool", reads_input=True, reads_output=True),
    "relu": LayerKind("activation", reads_input=True, reads_output=True, in_place=True),
    "lrn": LayerKind("norm", reads_input=True, reads_output=True, in_place=True),
    "bn": LayerKind("norm", reads_input=True),
    "dropout": LayerKind("dropout"),
    "softmax": LayerKind("loss", reads_input=True, reads_output=True, in_place=True),
    "fork": LayerKind("fork", in_place=True),
    "join": LayerKind("add", in_place=True),
    "concat": LayerKind("concat"),
}


class Layer(Struct, frozen=True, kw_only=True):
    """One layer: its inputs by name, the shape of its output, what it computes and holds.

    *flops* are those of its forward and *parameters* the number of weights and biases; a
    convolution has a *window*.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    shape: Shape
    flops: int
    parameters: int = 0
    window: Window | None = None


class Network:
    """A network under construction: each method adds a layer and returns its name.

    The first layer is `data`, the batch of images of shape (*batch*, *image* ...). A layer whose
    output has several readers must be a fork; joins and concats have several inputs.
    """

    def __init__(self, name: str, batch: int, image: tuple[int, int, int]) -> None:
        if batch < 1:
            raise InvalidInput(f"{name}: a batch of {batch} cannot be trained; give at least 1")
        self.name: Final = name
        self.layers: Final[dict[str, Layer]] = {}
        self._add("data", "data", (), (batch, *image), 0)

    def shape(self, layer: str) -> Shape:
        """Return the shape of a layer's output, batch first. Raises InvalidInput for no layer."""
        if layer not in self.layers:
            raise InvalidInput(f"{self.name}: there is no layer {layer!r} to read")
        return self.layers[layer].shape

    def conv(
        self,
        source: str,
        name: str,
        channels: int,
        kernel: int | tuple[int, int],
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
        bias: bool = True,
    ) -> str:
        """Add a convolution; kernel and padding are (height, width) or one number for both."""
        batch, depth, *size = self.shape(source)
        kernels = kernel if isinstance(kernel, tuple) else (kernel, kernel)
        paddings = padding if isinstance(padding, tuple) else (padding, padding)
        height, width = (
            _window(name, n, k, stride, p) for n, k, p in zip(size, kernels, paddings, strict=True)
        )
        shape = (batch, channels, height, width)
        weights = channels * depth * prod(kernels)
        window = Window(
            batch, depth, channels, (size[0], size[1]), (height, width), kernels, stride, paddings
        )
        parameters = weights + channels * bias
        return self._add(
            name, "conv", (source,), shape, window.gemm_flops, parameters, window=window
        )

    def fc(self, source: str, name: str, features: int) -> str:
        """Add a fully connected layer with bias over everything but the batch."""
        batch, *rest = self.shape(source)
        flops = 2 * batch * prod(rest) * features
        return self._add(
            name, "fc", (source,), (batch, features), flops, (prod(rest) + 1) * features
        )

    def pool(self, source: str, name: str, kernel: int, stride: int, padding: int = 0) -> str:
        """Add a pooling layer, maximum or average: they move the same bytes."""
        batch, channels, *size = self.shape(source)
        height, width = (_window(name, n, kernel, stride, padding) for n in size)
        shape = (batch, channels, height, width)
        return self._add(name, "pool", (source,), shape, prod(shape) * kernel * kernel)

    def relu(self, source: str, name: str) -> str:
        """Add a rectified linear unit."""
        return self._elementwise(source, name, "relu", 1)

    def lrn(self, source: str, name: str) -> str:
        """Add a local response normalization over five channels."""
        return self._elementwise(source, name, "lrn", 10)

    def bn(self, source: str, name: str) -> str:
        """Add a batch normalization with scale and shift."""
        return self._elementwise(source, name, "bn", 8, 2 * self.shape(source)[1])

    def dropout(self, source: str, name: str) -> str:
        """Add a dropout; its generator state is saved, so it can be computed again."""
        return self._elementwise(source, name, "dropout", 1)

    def softmax(self, source: str, name: str) -> str:
        """Add the softmax that ends the network; its gradient is written over its output."""
        return self._elementwise(source, name, "softmax", 5)

    def fork(self, source: str, name: str) -> str:
        """Add a fork: one copy of its input for each of its readers."""
        return self._elementwise(source, name, "fork", 0)

    def join(self, sources: tuple[str, ...], name: str) -> str:
        """Add an element-wise sum of several layers of one shape."""
        shape = self._like(name, sources, slice(None))
        return self._add(name, "join", sources, shape, prod(shape) * (len(sources) - 1))

    def concat(self, sources: tuple[str, ...], name: str) -> str:
        """Add a concatenation of several layers along their channels."""
        batch, _, *size = self._like(name, sources, slice(2, None))
        channels = sum(self.shape(source)[1] for source in sources)
        return self._add(name, "concat", sources, (batch, channels, *size), 0)

    def successors(self) -> dict[str, list[str]]:
        """Return, for each layer, those that read it, in the order in which they were added."""
        following: dict[str, list[str]] = {name: [] for name in self.layers}
        for layer in self.layers.values():
            for source in layer.inputs:
                following[source].append(layer.name)
        return following

    def predecessors(self) -> dict[str, list[str]]:
        """Return the reversed graph, last layer first: for each layer its inputs in order."""
        return {name: list(layer.inputs) for name, layer in reversed(self.layers.items())}

    @property
    def parameters(self) -> int:
        """The number of weights and biases of all layers."""
        return sum(layer.parameters for layer in self.layers.values())

    def _like(self, name: str, sources: tuple[str, ...], part: slice) -> Shape:
        """Return the first source's shape; all must be alike in that *part* of it."""
        if len(sources) < 2:
            raise InvalidInput(f"layer {name!r} brings together {len(sources)} layers; give two")
        shapes = [self.shape(source) for source in sources]
        if any(shape[part] != shapes[0][part] for shape in shapes):
            alike = ", ".join(map(str, shapes))
            raise InvalidInput(f"layer {name!r} cannot bring together the shapes {alike}")
        return shapes[0]

    def _elementwise(
        self, source: str, name: str, kind: str, flops_each: int, parameters: int = 0
    ) -> str:
        shape = self.shape(source)
        return self._add(name, kind, (source,), shape, flops_each * prod(shape), parameters)

    def _add(
        self,
        name: str,
        kind: str,
        inputs: tuple[str, ...],
        shape: Shape,
        flops: int,
        parameters: int = 0,
        window: Window | None = None,
    ) -> str:
        if min(shape) < 1:
            raise InvalidInput(f"layer {name!r} would have the empty shape {shape}")
        if name in self.layers:
            raise InvalidInput(f"{self.name}: two layers are named {name!r}")
        self.layers[name] = Layer(
            name=name,
            kind=kind,
            inputs=inputs,
            shape=shape,
            flops=flops,
            parameters=parameters,
            window=window,
        )
        return name


def _window(name: str, size: int, kernel: int, stride: int, padding: int) -> int:
    if kernel < 1 or stride < 1 or padding < 0:
        raise InvalidInput(
            f"layer {name!r}: window {kernel}, stride {stride} and padding {padding} make no sense"
        )
    reach = size + 2 * padding - kernel
    if reach < 0:
        raise InvalidInput(f"layer {name!r}: a window of {kernel} does not fit into {size}")
    return reach // stride + 1
