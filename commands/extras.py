"""What some commands need beyond the bare package."""

import importlib.util

from ..errors import MissingExtra


def require_torch(what: str) -> None:
    """Raise MissingExtra if PyTorch is not there, which *what* needs."""
    if importlib.util.find_spec("torch") is None:
        raise MissingExtra(
            f"{what} needs PyTorch: pip install 'superneurons[torch]', or a build of it from "
            "pytorch.org"
        )
