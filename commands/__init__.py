"""Commands that stand in files of their own; cli.py adds them."""

from .paper import paper

__all__ = ["paper"]
