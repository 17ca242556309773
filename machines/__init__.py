"""What a machine is: device, links, tiers, and the files that describe them."""

from .file import find_machine, machine_names, read_machine
from .model import Link, Machine, Tier

__all__ = ["Link", "Machine", "Tier", "find_machine", "machine_names", "read_machine"]
