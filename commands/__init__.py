"""Commands that stand in files of their own; cli.py adds them."""

from .ablate import ablate
from .convert import convert
from .paper import paper
from .record import record
from .run import run

__all__ = ["ablate", "convert", "paper", "record", "run"]
