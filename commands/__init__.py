"""Commands that stand in files of their own; cli.py adds them."""

from .ablate import ablate
from .paper import paper

__all__ = ["ablate", "paper"]
