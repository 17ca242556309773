"""Questions asked of traces, policies and machines together."""

from .fit import Fit, Trial, fit

__all__ = ["Fit", "Trial", "fit"]
