"""Questions asked of traces, policies and machines together."""

from .ablation import ABLATIONS, Ablation, ablate, find_ablation
from .fit import Fit, Trial, fit

__all__ = ["ABLATIONS", "Ablation", "Fit", "Trial", "ablate", "find_ablation", "fit"]
