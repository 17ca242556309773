"""Reading and writing data files: YAML or JSON, gzipped or not, never half-written."""

import gzip
import os
import tempfile
import zlib
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml

from ..errors import InvalidInput

T = TypeVar("T")
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_Dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


class _StrictLoader(_Loader):  # type: ignore[misc]
    """YAML as it is meant: a key that is given twice is a mistake, not an override."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return the mapping of a node whose keys are all different."""
        seen: set[str] = set()
        for (
            key,
            _,
        ) in node.value:  # before merge keys bring in others' keys, which may be overridden
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            text = repr(self.construct_object(key, deep=True))
            if text in seen:
                line = node.start_mark.line + 1
                raise ValueError(f"{text} is given twice in the mapping at line {line}")
            seen.add(text)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return mapping


def read_data(path: Path, header: str, what: str) -> dict[str, object]:
    """Return the mapping in the file at *path*, without its `format` entry.

    *header* is the format that is asked for, such as "superneurons-trace/1", and *what* its name
    in messages. Raises InvalidInput for a file that is missing, unreadable, truncated, of
    another format or of another version.
    """
    return _parsed(_raw(path, what), path, header, what)


def read_as(path: Path, header: str, what: str, kind: type[T]) -> T:
    """Return the file at *path* as a *kind*. Raises InvalidInput as `read_data` and `decode` do."""
    raw = _raw(path, what)
    prefix = b'{"format":' + msgspec.json.encode(header) + b","
    if raw.startswith(prefix) and not _is_yaml(path):
        # As we write it: decoded in one go, three times as fast. What is wrong is told below.
        try:
            return msgspec.json.decode(b"{" + raw[len(prefix) :], type=kind)
        except (msgspec.DecodeError, RecursionError):
            pass
    return decode(_parsed(raw, path, header, what), kind, path)


def _raw(path: Path, what: str) -> bytes:
    try:
        raw = path.read_bytes()
        return gzip.decompress(raw) if path.suffix == ".gz" else raw
    except (OSError, EOFError, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InvalidInput(f"{path}: cannot be read as a {what}: {reason}") from None


def _parsed(raw: bytes, path: Path, header: str, what: str) -> dict[str, object]:
    try:
        yaml_file = _is_yaml(path)
        data = yaml.load(raw, Loader=_StrictLoader) if yaml_file else msgspec.json.decode(raw)
    except RecursionError:
        raise InvalidInput(f"{path}: cannot be read as a {what}: it is nested too deep") from None
    except (yaml.YAMLError, msgspec.DecodeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InvalidInput(f"{path}: cannot be read as a {what}: {reason}") from None
    if not isinstance(data, dict):
        raise InvalidInput(
            f"{path}: is no {what}: it holds no mapping with a line 'format: {header}'"
        )
    found = data.pop("format", None)
    if found != header:
        kind, _, version = header.partition("/")
        if isinstance(found, str) and found.startswith(kind + "/"):
            raise InvalidInput(
                f"{path}: is a {what} version {found.partition('/')[2]}; this superneurons reads "
                f"version {version}"
            )
        raise InvalidInput(f"{path}: is no {what}: its format is {found!r}, not {header!r}")
    return data


def write_data(path: Path, header: str, data: dict[str, object]) -> None:
    """Write *data* under *header*: YAML or JSON by the name's ending, gzipped with `.gz`."""
    content = {"format": header, **data}
    if _is_yaml(path):
        plain = msgspec.to_builtins(content)
        raw = yaml.dump(
            plain, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=100
        ).encode()
    else:
        raw = msgspec.json.encode(content) + b"\n"
    write_bytes(path, gzip.compress(raw, mtime=0) if path.suffix == ".gz" else raw)


def _is_yaml(path: Path) -> bool:
    return path.name.removesuffix(".gz").endswith((".yaml", ".yml"))


def write_bytes(path: Path, raw: bytes) -> None:
    """Write the file at *path* whole or not at all. Raises InvalidInput where that fails.

    What is there and no plain file, a pipe or a device, is written to as it is.
    """
    try:
        path = path.resolve()
        if path.exists() and not path.is_file() and not path.is_dir():
            path.write_bytes(raw)
            return
        number, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with open(number, "wb") as file:
                file.write(raw)
            mask = os.umask(0)
            os.umask(mask)
            Path(name).chmod(0o666 & ~mask)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise InvalidInput(f"{path}: cannot be written: {error.strerror}") from None


def decode(data: object, kind: type[T], path: Path | str) -> T:
    """Convert plain *data* to *kind*; a fault is told with the file and the path inside it."""
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        sentence, _, place = str(error).partition(" - at `$")
        at = place.rstrip("`").lstrip(".")
        raise InvalidInput(f"{path}: {at + ': ' if at else ''}{sentence}") from None
