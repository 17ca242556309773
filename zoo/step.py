"""One training step: a model, its optimizer and the one batch that it is trained on, over and over.

The batch is built once and reused: what a step costs does not depend on what is in the images.
"""

from collections.abc import Callable
from typing import Final, final

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer


@final
class Step:
    """Call it to run one whole training step; afterwards it holds no tensor of that step.

    *criterion* takes the model's output and the *targets*. With *clip* gradients are scaled down
    to that norm before the optimizer sees them.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        inputs: tuple[Tensor, ...],
        targets: Tensor,
        criterion: Callable[[Tensor, Tensor], Tensor] = functional.cross_entropy,
        clip: float | None = None,
    ) -> None:
        self.model: Final = model
        self.optimizer: Final = optimizer
        self.inputs: Final = inputs
        self.targets: Final = targets
        self.criterion: Final = criterion
        self.clip: Final = clip

    def __call__(self) -> None:
        """Forget the last gradients, then forward, loss, backward and update."""
        # A loss that was returned, or kept, would hold the graph of this step into the next one.
        self.optimizer.zero_grad()
        loss = self.loss()
        loss.backward()
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()

    def loss(self) -> Tensor:
        """Run forward alone and return the loss, with its graph."""
        return self.criterion(self.model(*self.inputs), self.targets)


def image_step(
    model: nn.Module, optimizer: Optimizer, batch: int, image: int, classes: int
) -> Step:
    """Return the step of a classifier of square RGB images, with cross entropy."""
    images = torch.randn(batch, 3, image, image)
    labels = torch.randint(classes, (batch,))
    return Step(model, optimizer, (images,), labels)


def token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the cross entropy of each token's prediction, however the tokens are laid out."""
    return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
