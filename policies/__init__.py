"""Decide: from a trace to a schedule. The contract, the walk, and one file a policy."""

from . import contract
from .base import Component, Part, Policy, Wish
from .baseline import Baseline
from .cache import Cache
from .decide import Decision, decide
from .liveness import Liveness
from .offload import Offload
from .recompute import Recompute
from .registry import find_policy, policy_maker, policy_names
from .reserve import decide_reserved
from .stack import Stack
from .superneurons import SuperNeurons
from .walk import Walk
from .workspace import Workspace

__all__ = [
    "Baseline",
    "Cache",
    "Component",
    "Decision",
    "Liveness",
    "Offload",
    "Part",
    "Policy",
    "Recompute",
    "Stack",
    "SuperNeurons",
    "Walk",
    "Wish",
    "Workspace",
    "contract",
    "decide",
    "decide_reserved",
    "find_policy",
    "policy_maker",
    "policy_names",
]
