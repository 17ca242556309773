"""Networks to record: plain eager PyTorch, with torch as the only dependency.

Each function builds a model, one batch, a loss and an optimizer, and returns a step: call it
without arguments to run one whole training step. What is built is built on the default device
(`torch.set_default_device`), from seed 0; the step itself asks for no default device.

Default arguments give the published network, parameter for parameter. Smaller ones are there for
tests: they give another network of the same make.
"""

from .bert import bert
from .cnn import small_cnn
from .convnext import convnext
from .densenet import densenet121
from .gpt import gpt
from .lstm import lstm
from .resnet import resnet, resnet50
from .unet import unet
from .vit import vit

__all__ = [
    "bert",
    "convnext",
    "densenet121",
    "gpt",
    "lstm",
    "resnet",
    "resnet50",
    "small_cnn",
    "unet",
    "vit",
]
