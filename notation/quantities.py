"""Quantities as people write them ("6GiB", "12 GB/s") and as the package holds them: integers."""

import re
from fractions import Fraction
from typing import Annotated, Final

from ..errors import InvalidInput

NBytes = Annotated[int, "bytes"]
"""An integer number of bytes; as a parameter it may be written with a unit, `in_flight=64MiB`."""

_PREFIXES: Final = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BINARY: Final = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_UNITS: Final[dict[str, dict[str, int | Fraction]]] = {
    "bytes": {f"{p}B": f for p, f in (_PREFIXES | _BINARY).items()},
    "bytes per second": {f"{p}B/s": f for p, f in (_PREFIXES | _BINARY).items()},
    "flop per second": {f"{p}FLOP/s": f for p, f in _PREFIXES.items()},
    "ns": {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9},
}
_EXAMPLE: Final = {
    "bytes": "6GiB",
    "bytes per second": "8GB/s",
    "flop per second": "4.3TFLOP/s",
    "ns": "5us",
}
_NUMBER: Final = re.compile(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*([A-Za-z/]*)\s*")


def parse_quantity(text: str | int, unit: str) -> int:
    """Return *text* as an integer in *unit* ("bytes", "bytes per second", "flop per second", "ns").

    A bare number is a number of bytes; everything else needs its unit, for a rate of 12 is a slip.
    Raises InvalidInput for anything that is not a whole, non-negative number of it.
    """
    match = None if isinstance(text, bool) else _NUMBER.fullmatch(str(text))
    bare = 1 if unit == "bytes" or (match and int(match[1].replace(".", "")) == 0) else None
    scale = (_UNITS[unit].get(match[2]) if match[2] else bare) if match else None
    if match is None or scale is None:
        raise InvalidInput(f"{text!r} is not a number of {unit}; write it like {_EXAMPLE[unit]}")
    exact = Fraction(match[1]) * scale
    if exact.denominator != 1:
        raise InvalidInput(f"{text!r} is not a whole number of {unit}")
    return int(exact)


def parse_bytes(text: str | int) -> int:
    """Return a number of bytes; units are decimal (GB) or binary (GiB)."""
    return parse_quantity(text, "bytes")


def format_bytes(nbytes: int) -> str:
    """Return *nbytes* in MiB to three decimals, the paper's unit; less than one in bytes."""
    return f"{nbytes / 2**20:,.3f} MiB" if nbytes >= 2**20 else f"{nbytes:,} B"


def format_ns(ns: int) -> str:
    """Return *ns* in milliseconds to three decimals."""
    return f"{ns / 1e6:,.3f} ms"
