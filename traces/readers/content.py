"""What is in a foreign file: its bytes, unpacked if they are gzipped, whatever its name says."""

import gzip
import zlib
from pathlib import Path
from typing import Final

from ...errors import InvalidInput

GZIP_MAGIC: Final = b"\x1f\x8b"
_HEAD_NBYTES: Final = 2**16


def read_content(path: Path) -> bytes:
    """Return all of the file at *path*. Raises InvalidInput if it is missing or cut off."""
    return _read(path, -1)


def read_head(path: Path) -> bytes:
    """Return the first 64 KiB of the file at *path*. Raises InvalidInput if that cannot be."""
    return _read(path, _HEAD_NBYTES)


def _read(path: Path, nbytes: int) -> bytes:
    try:
        with path.open("rb") as file:
            packed = file.read(len(GZIP_MAGIC)) == GZIP_MAGIC
            file.seek(0)
            if not packed:
                return file.read(nbytes)
            with gzip.open(file) as unpacked:
                return unpacked.read(nbytes)
    except (OSError, EOFError, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InvalidInput(f"{path}: cannot be read: {reason}") from None
