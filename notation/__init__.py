"""How people write things: quantities with units, names with parameters."""

from .names import Call, build, describe, parse_call, parse_calls
from .quantities import NBytes, format_bytes, format_ns, parse_bytes, parse_quantity

__all__ = [
    "Call",
    "NBytes",
    "build",
    "describe",
    "format_bytes",
    "format_ns",
    "parse_bytes",
    "parse_call",
    "parse_calls",
    "parse_quantity",
]
