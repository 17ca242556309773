"""VGG16 and VGG19 as the paper trains them: 3 x 3 convolutions with bias, 227 x 227 images."""

from typing import Final

from .cudnn import Algorithms, named
from .layers import Network
from .model import Trace
from .step import training_step

_STAGES_16: Final = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
"""Channels and convolutions of each stage of VGG16; every stage ends in a pooling."""

_STAGES_19: Final = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))


def vgg16(batch: int = 32, image: int = 227, algorithms: Algorithms = "none") -> Trace:
    """The paper's VGG16 (Fig. 2, 8, 11; Tables 2, 5): 138,357,544 parameters.

    *algorithms*: cudnn gives each convolution the algorithms of its era, with workspaces.
    """
    return _trace("vgg16", _STAGES_16, batch, image, algorithms)


def vgg19(batch: int = 32, image: int = 227, algorithms: Algorithms = "none") -> Trace:
    """The paper's VGG19 (Fig. 2, 8): 143,667,240 parameters.

    *algorithms*: cudnn gives each convolution the algorithms of its era, with workspaces.
    """
    return _trace("vgg19", _STAGES_19, batch, image, algorithms)


def _trace(
    name: str, stages: tuple[tuple[int, int], ...], batch: int, image: int, algorithms: Algorithms
) -> Trace:
    net = Network(name, batch, (3, image, image))
    x = "data"
    for stage, (channels, convolutions) in enumerate(stages, 1):
        for i in range(1, convolutions + 1):
            x = net.conv(x, f"conv{stage}.{i}", channels, 3, padding=1)
            x = net.relu(x, f"relu{stage}.{i}")
        x = net.pool(x, f"pool{stage}", 2, 2)
    x = net.dropout(net.relu(net.fc(x, "fc6", 4096), "relu6"), "drop6")
    x = net.dropout(net.relu(net.fc(x, "fc7", 4096), "relu7"), "drop7")
    net.softmax(net.fc(x, "fc8", 1000), "softmax")
    full = f"{name}:batch={batch},image={image}" + named(algorithms)
    return training_step(net, full, algorithms=algorithms)
