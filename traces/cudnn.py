"""Convolution algorithms of cuDNN's era, by their arithmetic: what each computes, moves and needs.

The paper's runtime asks cuDNN which algorithms there are and how fast they are (section 3.5). The
library of 2017 on a K40c cannot be asked any more, so this model counts instead: operations and
bytes of each algorithm, from the publications named in docs/workspaces.md, timed by the machine's
roofline like everything else in a layer trace. Batch N, C channels in, K out, fp32.

An operation by itself is the implicit GEMM, without workspace; these are its alternatives.
"""

from itertools import product
from math import ceil, log2
from typing import Final, Literal

from msgspec import Struct

from .model import Algorithm

Algorithms = Literal["none", "cudnn"]
"""Which alternatives a convolution has: none, or those of this model."""

FP32_NBYTES: Final = 4
COMPLEX_NBYTES: Final = 8
LEAST_SIDE: Final = 32
"""The smallest transform: in the paper's Fig. 12 even images of 13 x 13 have spectra of 32 x 32."""
MOST_SIDE: Final = 256
"""The largest (cuDNN: images with their padding of 256 at most)."""
TILE_SIDE: Final = 32
"""FFT tiling cuts images into tiles of 32 x 32 (cuDNN's description of FFT_TILING)."""
INDEX_SHARE: Final = (4, 5)
"""What the implicit GEMM's time comes to with its indices computed beforehand: assumed."""


class Window(Struct, frozen=True):
    """A convolution's geometry: (height, width) each; *image* is its input, *out* its output."""

    batch: int
    inputs: int
    outputs: int
    image: tuple[int, int]
    out: tuple[int, int]
    kernel: tuple[int, int]
    stride: int
    padding: tuple[int, int]

    @property
    def gemm_flops(self) -> int:
        """What the convolution takes as a matrix product, one multiplication and addition each."""
        size = self.batch * self.inputs * self.outputs * self.out[0] * self.out[1]
        return 2 * size * self.kernel[0] * self.kernel[1]

    @property
    def moved_nbytes(self) -> int:
        """Its images in, its images out, its filters: what every algorithm has to move."""
        height, width = self.image
        images = self.batch * (
            self.inputs * height * width + self.outputs * self.out[0] * self.out[1]
        )
        filters = self.inputs * self.outputs * self.kernel[0] * self.kernel[1]
        return FP32_NBYTES * (images + filters)


class _Way(Struct, frozen=True):
    """A way to compute one of a convolution's three products."""

    name: str
    flops: int
    moved_nbytes: int
    workspace_nbytes: int


def named(algorithms: Algorithms) -> str:
    """Return the parameter as it stands in a trace's name; nothing for what is the default."""
    return "" if algorithms == "none" else f",algorithms={algorithms}"


def forward(window: Window) -> tuple[Algorithm, ...]:
    """Return the alternatives of a convolution's forward."""
    return tuple(_algorithm(way) for way in _ways(window) if way.name != "gemm")


def backward(window: Window) -> tuple[Algorithm, ...]:
    """Return the alternatives of its backward: the gradient of its input, then of its filters.

    Both workspaces are held together, as the release does.
    """
    data = [way for way in _ways(window) if way.name != "precomputed"]
    filters = [way for way in data if way.name != "winograd"]  # cuDNN has no fused one there
    return tuple(
        _algorithm(
            _Way(
                f"{one.name}+{two.name}",
                one.flops + two.flops,
                one.moved_nbytes + two.moved_nbytes,
                one.workspace_nbytes + two.workspace_nbytes,
            )
        )
        for one, two in product(data, filters)
        if (one.name, two.name) != ("gemm", "gemm")
    )


def _algorithm(way: _Way) -> Algorithm:
    return Algorithm(
        name=way.name,
        flops=way.flops,
        moved_nbytes=way.moved_nbytes,
        workspace_nbytes=way.workspace_nbytes,
    )


def _ways(window: Window) -> list[_Way]:
    """Return all ways to compute one product; that of a gradient costs what the forward does."""
    ways = [_Way("gemm", window.gemm_flops, window.moved_nbytes, 0), _precomputed(window)]
    if window.stride == 1 and window.kernel != (1, 1):
        ways += _by_spectrum(window)
    if window.stride == 1 and window.kernel == (3, 3):
        # Lavin and Gray: additions of the transforms of a tile of images, filters and results.
        ways.append(_winograd(window, "winograd", 2, (32, 28, 24), fused=True))
        ways.append(_winograd(window, "winograd-nonfused", 4, (156, 72, 90), fused=False))
    return ways


def _precomputed(window: Window) -> _Way:
    """The implicit GEMM with a table of offsets: of every output, and of every weight's tap."""
    taps = window.inputs * window.kernel[0] * window.kernel[1]
    table = FP32_NBYTES * (window.out[0] * window.out[1] + taps)
    part, whole = INDEX_SHARE
    flops = window.gemm_flops * part // whole
    return _Way("precomputed", flops, window.moved_nbytes + table, table)


def _by_spectrum(window: Window) -> list[_Way]:
    """By FFT: whole images if they are small enough, and in tiles if they are larger than one."""
    padded = max(n + 2 * p for n, p in zip(window.image, window.padding, strict=True))
    side = max(LEAST_SIDE, 1 << (padded - 1).bit_length())
    ways = [_spectrum(window, "fft", side, 1)] if side <= MOST_SIDE else []
    if side > TILE_SIDE:
        tiles = 1
        for n, k in zip(window.out, window.kernel, strict=True):
            tiles *= ceil(n / (TILE_SIDE - k + 1))
        ways.append(_spectrum(window, "fft-tiling", TILE_SIDE, tiles))
    return ways


def _spectrum(window: Window, name: str, side: int, tiles: int) -> _Way:
    """Transform images and filters, multiply spectra, transform back; tiles one after another."""
    n, c, k = window.batch, window.inputs, window.outputs
    half = side * (side // 2 + 1)  # a real image's spectrum is given by half of it
    spectra = COMPLEX_NBYTES * half
    transform = round(2.5 * side * side * log2(side * side))
    flops = transform * (tiles * n * (c + k) + c * k) + 8 * half * tiles * n * c * k
    written = spectra * (tiles * n * (c + k) + c * k)
    return _Way(name, flops, window.moved_nbytes + 2 * written, spectra * (n * c + n * k + c * k))


def _winograd(
    window: Window, name: str, out: int, transforms: tuple[int, int, int], *, fused: bool
) -> _Way:
    """F(out x out, 3 x 3): tiles of (out + 2)^2; not fused, they are written and read again."""
    n, c, k = window.batch, window.inputs, window.outputs
    tile = (out + 2) ** 2
    tiles = n * ceil(window.out[0] / out) * ceil(window.out[1] / out)
    image, filters, result = transforms
    flops = 2 * tile * tiles * c * k
    flops += image * tiles * c + filters * c * k + result * tiles * k
    workspace = 0 if fused else FP32_NBYTES * tile * (tiles * (c + k) + c * k)
    return _Way(name, flops, window.moved_nbytes + 2 * workspace, workspace)
