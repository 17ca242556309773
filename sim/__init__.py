"""Simulate: from a schedule to a report. Lanes and links."""

from .device import Observer
from .passage import Passage, foresee
from .recorder import Recorder
from .retarget import carry_times, retarget
from .simulate import play, simulate, simulate_schedule

__all__ = [
    "Observer",
    "Passage",
    "Recorder",
    "carry_times",
    "foresee",
    "play",
    "retarget",
    "simulate",
    "simulate_schedule",
]
