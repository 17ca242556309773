"""Machine files: YAML, one figure a line, each with its source.

    format: superneurons-machine/1
    name: k40c
    description: ...
    figures:
      device_memory: {value: 12GiB, source: where this is from}
      ...

Required are the figures in `REQUIRED`; those in `OPTIONAL` may be there. A tier is described by the
four figures `TIER_memory`, `device_to_TIER`, `TIER_to_device` and `TIER_latency`, and may have
those of `TIER_OPTIONAL`; every machine has the tier `host`. The command line may override any
figure: `k40c:host_to_device=12GB/s`.
"""

import re
from importlib.resources import files
from pathlib import Path
from typing import Final

from msgspec import Struct

from ..errors import InvalidInput, InvalidMachine, UnknownName
from ..notation import parse_call, parse_quantity
from ..notation.files import decode, read_data
from .model import Link, Machine, Tier

FORMAT: Final = "superneurons-machine/1"
REQUIRED: Final = {
    "device_memory": "bytes",
    "compute_rate": "flop per second",
    "memory_rate": "bytes per second",
    "launch_time": "ns",
    "allocator": "",
}
OPTIONAL: Final = {
    "tf32_rate": "flop per second",
    "half_rate": "flop per second",
    "gpu": "",
    "copy_issue_time": "ns",
    "malloc_time": "ns",
    "free_time": "ns",
}
TIER: Final = {
    "{}_memory": "bytes",
    "device_to_{}": "bytes per second",
    "{}_to_device": "bytes per second",
    "{}_latency": "ns",
}
TIER_OPTIONAL: Final = ("{}_duplex", "{}_pages", "{}_pageable_rate")
_TIER_NAME: Final = re.compile(
    r"device_to_(\w+)|(\w+)_to_device|(\w+)_(?:latency|duplex|pages|pageable_rate)|((?!device_)\w+)_memory"
)


class Figure(Struct, frozen=True, forbid_unknown_fields=True):
    """One figure of a machine file: a quantity with its unit, and where it comes from."""

    value: str | int
    source: str


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    description: str
    figures: dict[str, object]


def find_machine(text: str) -> Machine:
    """Return a machine by built-in name or by file, with its overridden figures.

    *text* is `NAME` or `FILE.yaml`, then perhaps `:figure=value,...`. Raises UnknownName,
    InvalidMachine or InvalidInput.
    """
    call = parse_call(text)
    if call.name.endswith((".yaml", ".yml")):
        path = Path(call.name)
    elif call.name in (names := machine_names()):
        path = Path(str(files(__package__))) / f"{call.name}.yaml"
    else:
        raise UnknownName(
            f"no machine {call.name!r}; there are: {', '.join(names)}, or give a .yaml file"
        )
    return read_machine(path, call.parameters)


def machine_names() -> list[str]:
    """Return the names of the built-in machines."""
    here = files(__package__)
    return sorted(entry.name[:-5] for entry in here.iterdir() if entry.name.endswith(".yaml"))


def read_machine(path: Path, overrides: dict[str, str] | None = None) -> Machine:
    """Return the machine in the file at *path*; *overrides* replace figures by name."""
    content = decode(read_data(path, FORMAT, "machine file"), _File, path)
    figures = {}
    for key, figure in content.figures.items():
        if not isinstance(figure, dict):
            raise InvalidMachine(
                f"{path}: figure {key!r} is {figure!r}; write {{value: {figure}, source: ...}}"
            )
        figures[key] = decode(figure, Figure, f"{path}: figure {key!r}")
    for key, value in (overrides or {}).items():
        figures[key] = Figure(value, "given on the command line")
    name = content.name
    if overrides:
        name += ":" + ",".join(f"{key}={value}" for key, value in overrides.items())
    return _Reader(name if overrides else str(path), name, content.description, figures).machine()


class _Reader:
    """Turns the figures of one file into a machine, with a sentence for each that is wrong."""

    def __init__(self, where: str, name: str, description: str, figures: dict[str, Figure]) -> None:
        self._where = where
        self._name = name
        self._description = description
        self._figures = figures

    def machine(self) -> Machine:
        tiers = self._tier_names()
        known = {key.format(tier) for tier in tiers for key in (*TIER, *TIER_OPTIONAL)}
        known |= {*REQUIRED, *OPTIONAL}
        for key in self._figures:
            if key not in known:
                raise InvalidMachine(
                    f"{self._where}: figure {key!r} means nothing here; "
                    f"there are: {', '.join(sorted(known))}"
                )
        return Machine(
            name=self._name,
            description=self._description,
            device_nbytes=self._positive("device_memory", "bytes"),
            flops_per_s=self._positive("compute_rate", "flop per second"),
            bytes_per_s=self._positive("memory_rate", "bytes per second"),
            tensor_flops_per_s={
                precision: self._positive(f"{precision}_rate", "flop per second")
                for precision in ("tf32", "half")
                if f"{precision}_rate" in self._figures
            },
            gpu=self._text("gpu", ""),
            launch_ns=self._quantity("launch_time", "ns"),
            copy_issue_ns=self._quantity("copy_issue_time", "ns", "0ns"),
            malloc_ns=self._quantity("malloc_time", "ns", "0ns"),
            free_ns=self._quantity("free_time", "ns", "0ns"),
            tiers=tuple(self._tier(tier) for tier in tiers),
            allocator=self._text("allocator"),
            written={key: str(figure.value) for key, figure in self._figures.items()},
            sources={key: figure.source for key, figure in self._figures.items()},
        )

    def _tier_names(self) -> list[str]:
        found = {"host": None}
        for key in self._figures:
            match = _TIER_NAME.fullmatch(key)
            if match:
                found.setdefault(next(group for group in match.groups() if group))
        return list(found)

    def _tier(self, tier: str) -> Tier:
        duplex = self._text(f"{tier}_duplex", "full")
        if duplex not in ("full", "half"):
            raise InvalidMachine(
                f"{self._where}: {tier}_duplex is {duplex!r}; it is one of: full, half"
            )
        nbytes = self._quantity(f"{tier}_memory", "bytes")
        out_rate, in_rate = self._rates(tier)
        return Tier(
            name=tier,
            nbytes=nbytes,
            link=Link(
                out_bytes_per_s=out_rate,
                in_bytes_per_s=in_rate,
                latency_ns=self._quantity(f"{tier}_latency", "ns"),
                duplex="half" if duplex == "half" else "full",
            ),
        )

    def _rates(self, tier: str) -> tuple[int, int]:
        """Return the rates to a tier and back: to pageable memory no more than its own."""
        out_rate = self._positive(f"device_to_{tier}", "bytes per second")
        in_rate = self._positive(f"{tier}_to_device", "bytes per second")
        pages = self._text(f"{tier}_pages", "pinned")
        if pages not in ("pinned", "pageable"):
            raise InvalidMachine(
                f"{self._where}: {tier}_pages is {pages!r}; it is one of: pinned, pageable"
            )
        if pages == "pinned":
            return out_rate, in_rate
        most = self._positive(f"{tier}_pageable_rate", "bytes per second")
        return min(out_rate, most), min(in_rate, most)

    def _text(self, key: str, default: str | None = None) -> str:
        figure = self._figures.get(key)
        if figure is not None:
            return str(figure.value)
        if default is None:
            raise InvalidMachine(
                f"{self._where}: the figure {key!r} is missing; add it with its source"
            )
        return default

    def _quantity(self, key: str, unit: str, default: str | None = None) -> int:
        try:
            return parse_quantity(self._text(key, default), unit)
        except InvalidMachine:
            raise
        except InvalidInput as error:
            raise InvalidMachine(f"{self._where}: figure {key!r}: {error}") from None

    def _positive(self, key: str, unit: str) -> int:
        number = self._quantity(key, unit)
        if number == 0:
            raise InvalidMachine(f"{self._where}: figure {key!r} is 0; it must be more")
        return number
