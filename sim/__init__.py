"""Simulate: from a schedule to a report. Lanes, links, allocators."""

from .allocators import Allocator, ExactBytes
from .device import Observer
from .recorder import Recorder
from .simulate import play, simulate, simulate_schedule

__all__ = [
    "Allocator",
    "ExactBytes",
    "Observer",
    "Recorder",
    "play",
    "simulate",
    "simulate_schedule",
]
