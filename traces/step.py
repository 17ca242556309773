"""From a layer graph to one training step, with the paper's dependency lists.

Forward and backward follow the execution route. Every layer's output is one storage (a fork has
one for each reader); every backward makes the gradient of its layer's input, or writes it over
the gradient that it was given. Weights, their gradients and their momenta are there all the time.
There is no optimizer operation: the paper's figures end with the last backward.

Forks and joins differ between paper and release: see `Graph`.
"""

from math import prod
from typing import Final, Literal

from ..errors import InvalidInput
from .cudnn import Algorithms, backward, forward
from .layers import LAYER_KINDS, Layer, Network
from .model import Algorithm, Kind, Operation, Storage, Trace, Value
from .route import execution_route

FP32_NBYTES: Final = 4

Graph = Literal["release", "paper"]
"""Whose forks and joins. In the release's graph each has private outputs, which Table 1 needs; in
the paper's, which Fig. 2 needs, a fork's first output is its input and a join adds into its first
input. Gradients are alike in both."""


def training_step(
    network: Network, name: str, graph: Graph = "release", algorithms: Algorithms = "none"
) -> Trace:
    """Return one forward and backward of *network*, untimed: flops and bytes for a roofline.

    With *algorithms* every convolution has those of cuDNN's era, each with its workspace.

    Under the paper's *graph*, a join that writes over what a backward has still to read makes a
    trace that is refused when it is compiled.
    """
    return _Step(network, graph, algorithms).trace(name)


class _Step:
    """The trace under construction."""

    def __init__(self, network: Network, graph: Graph, algorithms: Algorithms) -> None:
        self._network = network
        self._graph = graph
        self._algorithms = algorithms
        self._followers = network.successors()
        self._storages: list[Storage] = []
        self._values: list[Value] = []
        self._operations: list[Operation] = []
        self._nbytes: dict[str, int] = {}  # of values and storages alike
        self._versions: dict[str, int] = {}
        self._outputs: dict[str, list[str]] = {"data": ["data"]}  # a fork's: one for each reader
        self._gradients: dict[
            tuple[str, str], str
        ] = {}  # (layer, reader) -> gradient of the output

    def trace(self, name: str) -> Trace:
        network = self._network
        self._prove()
        self._store("data", "input", prod(network.shape("data")), alive=True)
        for layer in network.layers.values():
            if layer.parameters:
                self._store(f"{layer.name}.weights", "parameter", layer.parameters, alive=True)
                for suffix, kind in _BESIDE_WEIGHTS:
                    self._store(
                        f"{layer.name}.weights.{suffix}", kind, layer.parameters, alive=True
                    )
        for layer_name in execution_route(self._followers):
            if layer_name != "data":
                self._forward(network.layers[layer_name])
        for layer_name in execution_route(network.predecessors()):
            if layer_name != "data":
                self._backward(network.layers[layer_name])
        return Trace(
            name=name,
            places="everywhere",
            times="roofline",
            storages=tuple(self._storages),
            values=tuple(self._values),
            operations=tuple(self._operations),
            notes=_NOTES
            | (_PAPER_NOTE if self._graph == "paper" else {})
            | (_CUDNN_NOTE if self._algorithms == "cudnn" else {}),
        )

    def _prove(self) -> None:
        """Refuse a graph that cannot be trained as it is drawn. Raises InvalidInput."""
        network = self._network
        for layer in network.layers.values():
            readers = self._followers[layer.name]
            if len(readers) > 1 and layer.kind not in ("fork", "data"):
                raise InvalidInput(
                    f"{network.name}: {layer.name!r} has several readers, {', '.join(readers)}; "
                    "put a fork between"
                )
            if len(set(layer.inputs)) < len(layer.inputs):
                raise InvalidInput(f"{network.name}: {layer.name!r} reads one layer twice")
            if not readers and layer.kind != "softmax":
                raise InvalidInput(
                    f"{network.name}: it ends in {layer.name!r}; end it in a softmax"
                )

    def _forward(self, layer: Layer) -> None:
        reads = [self._output(source, layer.name) for source in layer.inputs]
        self._outputs[layer.name] = outputs = self._make_outputs(layer, reads[0])
        writes = [output for output in outputs if output not in reads]
        if layer.parameters:
            reads.append(f"{layer.name}.weights")
        self._operate(layer, "", reads, writes, layer.flops)

    def _backward(self, layer: Layer) -> None:
        rule = LAYER_KINDS[layer.kind]
        given = [self._gradients[layer.name, reader] for reader in self._followers[layer.name]]
        if (
            layer.kind == "softmax"
        ):  # the labels are no tensor here: the output becomes the gradient
            given = [f"{layer.name}.out"]
        reads = list(given)
        if rule.reads_output and layer.kind != "softmax":
            reads += self._outputs[layer.name]
        if rule.reads_input:
            reads += [self._output(source, layer.name) for source in layer.inputs]
        writes = []
        for i, source in enumerate(layer.inputs):
            if rule.in_place and i == 0:
                gradient = self._next_version(given[0])
            else:
                gradient = f"{layer.name}.grad" + (f".{i}" if len(layer.inputs) > 1 else "")
                self._store(gradient, "activation-gradient", prod(self._network.shape(source)))
            self._gradients[source, layer.name] = gradient
            writes.append(gradient)
        if layer.parameters:
            reads.append(f"{layer.name}.weights")
            writes.append(self._next_version(f"{layer.name}.weights.grad"))
        # a layer with weights computes two gradients, each as costly as its forward
        flops = layer.flops * (2 if layer.parameters else 1)
        self._operate(layer, ".backward", reads, writes, flops)

    def _operate(
        self, layer: Layer, suffix: str, reads: list[str], writes: list[str], flops: int
    ) -> None:
        touched = dict.fromkeys(reads) | dict.fromkeys(writes)
        self._operations.append(
            Operation(
                name=layer.name + suffix,
                kind=LAYER_KINDS[layer.kind].op,
                phase="backward" if suffix else "forward",
                reads=tuple(reads),
                writes=tuple(writes),
                flops=flops,
                moved_nbytes=sum(self._nbytes[value] for value in touched),
                algorithms=self._alternatives(layer, suffix),
                recompute="random" if layer.kind == "dropout" else "pure",
                module=layer.name,
            )
        )

    def _alternatives(self, layer: Layer, suffix: str) -> tuple[Algorithm, ...]:
        if layer.window is None or self._algorithms == "none":
            return ()
        return backward(layer.window) if suffix else forward(layer.window)

    def _make_outputs(self, layer: Layer, source: str) -> list[str]:
        """Return the values of a layer's outputs; *source* is the first value that it reads."""
        outputs = [f"{layer.name}.out"]
        if layer.kind == "fork":
            outputs = [f"{layer.name}.out.{i}" for i in range(len(self._followers[layer.name]))]
        if self._graph == "paper":
            if layer.kind == "fork":
                outputs[0] = source
            elif layer.kind == "join":
                outputs[0] = self._next_version(source)
        for output in outputs:
            if output not in self._nbytes:
                self._store(output, "activation", prod(layer.shape))
        return outputs

    def _output(self, layer: str, reader: str) -> str:
        """Return the value that *reader* reads of *layer*: a fork has one for each reader."""
        outputs = self._outputs[layer]
        return outputs[self._followers[layer].index(reader)] if len(outputs) > 1 else outputs[0]

    def _next_version(self, value: str) -> str:
        storage = value.partition("@")[0]
        self._versions[storage] = version = self._versions.get(storage, 0) + 1
        name = f"{storage}@{version}"
        self._values.append(Value(name=name, storage=storage, version=version))
        self._nbytes[name] = self._nbytes[storage]
        return name

    def _store(self, name: str, kind: Kind, numbers: int, *, alive: bool = False) -> None:
        self._nbytes[name] = nbytes = FP32_NBYTES * numbers
        self._storages.append(Storage(name=name, kind=kind, nbytes=nbytes, alive_at_start=alive))


_BESIDE_WEIGHTS: Final[tuple[tuple[str, Kind], ...]] = (
    ("grad", "parameter-gradient"),
    ("momentum", "optimizer-state"),
)

_NOTES: Final = {
    "made": "from a layer graph, with the dependency lists of the SuperNeurons release",
    "times": "none measured: the roofline of the machine that it is simulated on",
}
_CUDNN_NOTE: Final = {"algorithms": "a model of cuDNN's, from counts: see docs/workspaces.md"}
_PAPER_NOTE: Final = {
    "graph": "the paper's: a fork's first output is its input, and a join adds into its first input"
}
