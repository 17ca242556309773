"""The zoo: as many parameters as published, and steps that a recorder can run anywhere."""

import gc
import inspect

import pytest

torch = pytest.importorskip("torch")

from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402

from superneurons import zoo  # noqa: E402
from superneurons.notation import build, parse_call  # noqa: E402
from superneurons.zoo.step import Step  # noqa: E402

TINY = {
    "bert": {"batch": 2, "length": 8, "layers": 1, "width": 16, "heads": 2, "vocabulary": 50},
    "convnext": {"batch": 2, "image": 32, "classes": 10, "width": 8},
    "densenet121": {"batch": 2, "image": 32, "classes": 10, "growth": 4},
    "gpt": {"batch": 2, "length": 8, "layers": 2, "width": 16, "heads": 2, "vocabulary": 50},
    "lstm": {"batch": 2, "length": 8, "hidden": 16, "vocabulary": 50},
    "resnet": {"n1": 1, "n2": 2, "n3": 1, "n4": 1, "batch": 2, "image": 32, "width": 8},
    "resnet50": {"batch": 2, "image": 32, "classes": 10, "width": 8},
    "small_cnn": {"batch": 2, "image": 8, "width": 8},
    "unet": {"batch": 2, "size": 16, "width": 4},
    "vit": {"batch": 2, "image": 32, "layers": 2, "width": 16, "heads": 2, "classes": 10},
}
GPT2 = {"batch": 1, "length": 1024, "layers": 12, "width": 768, "heads": 12, "vocabulary": 50257}

each_tiny = pytest.mark.parametrize(("name", "arguments"), TINY.items(), ids=TINY)


def parameters(step):
    return sum(parameter.numel() for parameter in step.model.parameters())


def grads(step):
    return [parameter.grad for parameter in step.model.parameters()]


def live_tensors():
    """Return the tensors that Python holds, by id, without asking an object what it says it is."""
    return {id(each): each for each in gc.get_objects() if issubclass(type(each), torch.Tensor)}


def states(step):
    """Return the tensors that the optimizer keeps."""
    values = [each for state in step.optimizer.state.values() for each in state.values()]
    return [each for each in values if isinstance(each, torch.Tensor)]


def test_every_network_has_a_tiny_one():
    assert sorted(TINY) == zoo.__all__


@pytest.mark.parametrize(
    ("name", "arguments", "count"),
    [
        ("bert", {}, 109_514_298),
        ("convnext", {}, 28_589_128),
        ("densenet121", {}, 7_978_856),
        ("gpt", {}, 1_315_819_520),
        pytest.param("gpt", GPT2, 124_439_808, id="gpt2"),
        ("lstm", {}, 37_283_600),
        pytest.param("lstm", {"hidden": 1500}, 66_034_000, id="lstm-large"),
        pytest.param("resnet", {"n1": 3, "n2": 4, "n3": 23, "n4": 3}, 44_549_160, id="resnet101"),
        pytest.param("resnet", {"n1": 3, "n2": 8, "n3": 36, "n4": 3}, 60_192_808, id="resnet152"),
        ("resnet50", {}, 25_557_032),
        ("small_cnn", {}, 676_714),
        ("unet", {}, 31_037_633),
        ("vit", {}, 86_567_656),
    ],
)
def test_a_network_has_the_parameters_that_its_docstring_says(name, arguments, count):
    make = getattr(zoo, name)
    with torch.device("meta"):
        assert parameters(make(**arguments)) == count
    assert f"{count:,}" in inspect.getdoc(make)


@each_tiny
def test_a_step_trains_every_parameter(name, arguments):
    step = getattr(zoo, name)(**arguments)
    before = [parameter.detach().clone() for parameter in step.model.parameters()]
    assert step() is None
    assert all(grad is not None and torch.isfinite(grad).all() for grad in grads(step))
    assert torch.isfinite(step.loss())
    after = step.model.parameters()
    assert not all(torch.equal(one, two) for one, two in zip(before, after, strict=True))


@each_tiny
def test_two_builds_are_the_same_to_the_bit(name, arguments):
    def losses():
        step = getattr(zoo, name)(**arguments)
        first = step.loss().detach()
        step()
        return torch.stack([first, step.loss().detach()])

    assert torch.equal(losses(), losses())


@each_tiny
def test_a_step_leaves_no_tensor_behind(name, arguments):
    step = getattr(zoo, name)(**arguments)
    step()  # the optimizer makes its states in the first one
    gc.collect()
    gc.disable()  # a tensor in a cycle would still be there, and be found
    try:
        before = live_tensors()
        step()
        left = live_tensors().keys() - before.keys()
        assert left <= {id(each) for each in [*grads(step), *states(step)]}
    finally:
        gc.enable()


@each_tiny
def test_a_step_runs_on_fake_tensors(name, arguments):
    with FakeTensorMode():
        step = getattr(zoo, name)(**arguments)
        step()
        step()
    assert all(grad is not None for grad in grads(step))


@each_tiny
def test_everything_is_built_on_the_default_device(name, arguments):
    with torch.device("meta"):
        step = getattr(zoo, name)(**arguments)
    held = [*step.model.parameters(), *step.model.buffers(), *step.inputs, step.targets]
    assert {each.device.type for each in held} == {"meta"}


@each_tiny
def test_forward_and_backward_ask_for_no_default_device(name, arguments):
    plain, step = (getattr(zoo, name)(**arguments) for _ in range(2))
    torch.manual_seed(1)
    plain.loss().backward()
    torch.manual_seed(1)
    with torch.device("meta"):
        step.loss().backward()
    # To the bit: torch lets an embedding on the CPU read indices that are not there.
    assert all(map(torch.equal, grads(plain), grads(step)))


@each_tiny
def test_every_parameter_can_be_written_as_text(name, arguments):
    make = getattr(zoo, name)
    hints = inspect.get_annotations(make)
    assert {hints[key] for key in inspect.signature(make).parameters} == {int}
    text = ",".join(f"{key}={value}" for key, value in arguments.items())
    with torch.device("meta"):
        built = build(make, parse_call(f"{name}:{text}"), "network")
        assert parameters(built) == parameters(make(**arguments))


def test_a_clipped_step_scales_the_gradients_down():
    unclipped = zoo.lstm(**TINY["lstm"])
    unclipped()
    step = Step(
        unclipped.model,
        unclipped.optimizer,
        unclipped.inputs,
        unclipped.targets,
        unclipped.criterion,
        clip=1e-3,
    )
    step()
    assert torch.nn.utils.get_total_norm(grads(step)).item() == pytest.approx(1e-3, rel=1e-2)
