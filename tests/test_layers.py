"""The house: imports point down only, and what is public is listed."""

import ast
import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = "superneurons"

# From the bottom up; those on one level do not know one another.
LEVELS = [
    {"errors"},
    {"notation"},
    {"traces", "machines"},
    {"schedules"},
    {"reports", "allocators"},
    {"policies"},
    {"sim", "executor", "zoo"},
    {"studies"},
    {"commands"},
    {"cli"},
]
BELOW = {
    name: set().union(*LEVELS[:height]) for height, level in enumerate(LEVELS) for name in level
}
NOT_OURS = {"tests", "docs", "examples", "bench", "build", "dist"}
FOLDERS = sorted(path.parent.name for path in REPOSITORY.glob("*/__init__.py"))
FOLDERS = [name for name in FOLDERS if name not in NOT_OURS]


def sources(name: str) -> list[Path]:
    """Return the Python files of a folder, or of a module at the root."""
    folder = REPOSITORY / name
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [REPOSITORY / f"{name}.py"]


def imported(path: Path) -> set[str]:
    """Return all that a file imports, anywhere in it, as dotted names from the top.

    A relative import climbs from the file's package: one dot is its own folder, and in a folder at
    the top two dots are the root.
    """
    package = (PACKAGE, *path.relative_to(REPOSITORY).parts[:-1])
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *((node.module,) if node.module else ())))
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return found


def uses(name: str) -> set[str]:
    """Return which folders and modules of the house another one imports, itself left out."""
    found = set()
    for path in sources(name):
        for dotted in imported(path):
            top, _, rest = dotted.partition(".")
            if top == PACKAGE:
                found.add(rest.partition(".")[0])
    return found - {name}


def public(name: str) -> list[str]:
    """Return the public names that a folder's `__init__.py` imports, sorted."""
    tree = ast.parse((REPOSITORY / name / "__init__.py").read_text())
    names = [
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    ]
    return sorted(each for each in names if not each.startswith("_"))


def test_every_folder_has_its_place():
    modules = {path.stem for path in REPOSITORY.glob("*.py")} - {"__init__", "__main__"}
    assert BELOW.keys() == {*FOLDERS, *modules}


@pytest.mark.parametrize("name", sorted(BELOW))
def test_imports_point_down_only(name):
    # The root itself may be asked for its version.
    assert uses(name) - {"__version__"} <= BELOW[name]


def test_the_reader_of_imports_sees_what_is_there():
    # An empty answer would pass above.
    assert uses("cli") >= {"errors", "notation", "machines", "traces", "policies", "sim"}
    assert uses("schedules") >= {"errors", "machines", "traces"}
    assert uses("notation") == {"errors"}
    assert uses("errors") == set()


def test_relative_imports_climb_from_the_files_own_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "REPOSITORY", tmp_path)
    path = tmp_path / "sim" / "lanes" / "link.py"
    path.parent.mkdir(parents=True)
    path.write_text(
        "from . import a\nfrom .b import c\nfrom ..d import e\nfrom ...f import g\n"
        "from ... import h\nimport i.j\nfrom k.l import m\n"
        "def later():\n    from ...n import o\n"
    )
    assert imported(path) == {
        "superneurons.sim.lanes.a",
        "superneurons.sim.lanes.b.c",
        "superneurons.sim.d.e",
        "superneurons.f.g",
        "superneurons.h",
        "i.j",
        "k.l.m",
        "superneurons.n.o",
    }


def test_every_folder_is_packed():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    packed = project["tool"]["setuptools"]["packages"]
    nested = {
        ".".join((PACKAGE, *path.parent.relative_to(REPOSITORY).parts))
        for name in FOLDERS
        for path in (REPOSITORY / name).rglob("__init__.py")
    }
    assert packed == sorted({PACKAGE, *nested})


@pytest.mark.parametrize("name", [*sorted(BELOW["policies"]), "policies"])
def test_what_decides_knows_neither_simulator_nor_gpu(name):
    tops = {dotted.partition(".")[0] for path in sources(name) for dotted in imported(path)}
    assert not tops & {"simpy", "torch"}


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("superneurons", {"simpy", "torch", "numpy", "matplotlib", "msgspec", "yaml"}),
        ("superneurons.policies", {"simpy", "torch", "numpy", "matplotlib"}),
        ("superneurons.sim", {"torch", "numpy", "matplotlib"}),
        ("superneurons.reports", {"simpy", "torch", "numpy", "matplotlib"}),
        ("superneurons.cli", {"simpy", "torch", "numpy", "matplotlib", "msgspec", "yaml"}),
    ],
)
def test_importing_loads_no_more_than_it_must(module, absent):
    code = (
        f"import sys, {module}\nsys.exit(', '.join(sorted({absent!r} & set(sys.modules))) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", FOLDERS)
def test_public_names_are_listed_and_exist(name):
    module = importlib.import_module(f"{PACKAGE}.{name}")
    assert list(module.__all__) == public(name)
    assert [each for each in module.__all__ if not hasattr(module, each)] == []
