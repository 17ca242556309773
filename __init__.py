"""Simulate GPU-memory schedules for DNN training: what a memory policy costs.

The folders are the map: `traces` (what a training step is), `machines` (what it runs on),
`schedules` (a step with memory decisions in it), `policies` (who decides), `sim` (what that
would cost) and `reports` (what it did cost). `docs/design.md` says why.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("superneurons")
except PackageNotFoundError:  # a clone on the path, nothing installed
    __version__ = "0+unknown"

__all__ = ["__version__"]
