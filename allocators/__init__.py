"""Models of allocators: what a device reserves for the bytes that a schedule asks for."""

from .occupy import occupy
from .registry import Allocator, ExactBytes, new_allocator

__all__ = ["Allocator", "ExactBytes", "new_allocator", "occupy"]
