"""What random operators of a GPU draw from, when they run again: seed and offset, played."""

import pytest

torch = pytest.importorskip("torch")

from superneurons.errors import Unsupported  # noqa: E402
from superneurons.executor.cuda_backend import CudaBackend  # noqa: E402


class Generator:
    """As torch's on a GPU; *given* are the offsets that it was set to. It knows no set_state: that
    would begin cuDNN's dropout anew."""

    def __init__(self):
        self.seed, self.offset, self.given = 7, 40, []

    def initial_seed(self):
        return self.seed

    def get_offset(self):
        return self.offset

    def set_offset(self, offset):
        self.offset = offset
        self.given.append(offset)


@pytest.fixture
def generator(monkeypatch):
    generator = Generator()
    monkeypatch.setattr(torch.cuda, "default_generators", (generator,))
    return generator


@pytest.fixture
def backend():
    backend = object.__new__(CudaBackend)
    backend._index = 0
    return backend


def test_an_operation_draws_what_it_drew_and_the_next_one_what_it_would_have(generator, backend):
    then = backend.draw_state()
    generator.offset = 80
    now = backend.draw_state()
    backend.draw_from(then)
    assert generator.offset == 40
    backend.draw_from(now)
    assert generator.offset == 80
    assert generator.given == [40, 80]


def test_another_seed_is_refused(generator, backend):
    then = backend.draw_state()
    generator.seed = 8
    with pytest.raises(Unsupported, match="sets a seed"):
        backend.draw_from(then)
    assert generator.given == []
