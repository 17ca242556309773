"""`superneurons record`: the user's function, from the shell to a trace file."""

import gc
import json
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

torch = pytest.importorskip("torch")

from commandline import refuse, run, succeed  # noqa: E402

from superneurons.errors import InvalidInput  # noqa: E402
from superneurons.executor import find_entry, record_function  # noqa: E402
from superneurons.traces import read_trace  # noqa: E402

MODEL = dedent(
    """
    import torch
    from torch import nn

    LAYERS = 3


    def build(width: int = 8, batch: int = 4):
        model = nn.Linear(width, 4)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        x = torch.randn(batch, width)

        def step():
            optimizer.zero_grad()
            model(x).sum().backward()
            optimizer.step()

        return step


    class Trainer:
        def __init__(self, width: int = 8):
            self.step = build(width)

        def __call__(self):
            self.step()


    def typed(width=8, *, scale: float = 1.0, deep: bool = False, sizes: tuple[int, ...] = ()):
        assert (width, scale, deep, sizes) == (16, 2.5, True, (3, 4))
        return build(width)


    def with_more(width: int = 8, **more):
        assert not more
        return build(width)


    def gives_a_number():
        return 3


    def gives_a_list():
        return [build()]


    def fails():
        raise LookupError("no data set here")


    def step_fails():
        def step():
            raise LookupError("no batch here")

        return step


    def fails_later():
        step, count = build(), [0]

        def run():
            count[0] += 1
            if count[0] == 2:
                raise LookupError("no second batch")
            step()

        return run


    def wants_a_batch():
        def step(batch):
            pass

        return step


    def leaves():
        raise SystemExit(3)


    def keeps():
        step, kept = build(), []

        def run():
            step()
            kept.append(torch.ones(4) * 2)

        return run
    """
)


@pytest.fixture(autouse=True)
def _settled_heap():
    """Let the collections around logged steps look at the objects of one test alone."""
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def _heap_as_before():
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Make the present folder one with a model in it, and forget its modules afterwards."""
    monkeypatch.chdir(tmp_path)
    before = dict(sys.modules)
    (tmp_path / "here_model.py").write_text(MODEL)
    yield tmp_path
    for name in set(sys.modules) - set(before):
        file = getattr(sys.modules[name], "__file__", None) or ""
        if not file or Path(file).is_relative_to(tmp_path):
            del sys.modules[name]


def record(entry: str, *options: str) -> str:
    """Record an entry without a GPU, whether there is one or not."""
    return succeed("record", entry, "--estimate", "-o", "step.json", *options)


def refused(entry: str) -> str:
    """Return why an entry is refused; nothing has been written then."""
    there = sorted(path.name for path in Path().iterdir() if path.name != "__pycache__")
    sentence = refuse("record", entry, "--estimate", "-o", "step.json")
    after = sorted(path.name for path in Path().iterdir() if path.name != "__pycache__")
    assert after == there
    return sentence


# -- what is recorded ------------------------------------------------------------------------------


def test_a_function_of_a_module_is_recorded():
    out = record("here_model:build")
    trace = read_trace("step.json")
    assert trace.name == "build"
    assert out.startswith(f"step.json: estimated build, {len(trace.operations)} operations, ")
    assert f"{len(trace.saves)} saves" in out
    assert "times: roofline" in out
    assert "An estimate: no GPU was asked" in out
    assert sorted(s.nbytes for s in trace.storages if s.kind == "parameter") == [16, 128]


@pytest.mark.parametrize("where", ["here_model.py", "./here_model.py", "here_model"])
def test_a_module_may_be_given_by_its_name_or_file(where):
    record(f"{where}:build")
    assert read_trace("step.json").name == "build"


def test_a_file_may_be_anywhere(folder):
    (folder / "deep" / "down").mkdir(parents=True)
    (folder / "deep" / "down" / "elsewhere.py").write_text(MODEL)
    record("deep/down/elsewhere.py:build")
    record(f"{folder}/deep/down/elsewhere.py:build")


def test_a_module_may_be_in_a_package(folder):
    package = folder / "here_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "model.py").write_text(MODEL)
    (package / "other.py").write_text("from . import model\n\nbuild = model.build\n")
    record("here_package.model:build")
    record("here_package.other:build")


def test_an_installed_module_will_do():
    record("superneurons.zoo:small_cnn:batch=2,image=8,width=8")
    assert read_trace("step.json").name == "small_cnn-batch2-image8-width8"


def test_parameters_are_the_functions_and_part_of_the_name():
    record("here_model:build:width=16,batch=2")
    trace = read_trace("step.json")
    assert trace.name == "build-width16-batch2"
    assert sorted(s.nbytes for s in trace.storages if s.kind == "parameter") == [16, 256]


def test_parameters_have_the_types_that_the_function_says():
    record("here_model:typed:width=16,scale=2.5,deep=true,sizes=3/4")


def test_a_function_that_would_take_anything_more_need_not_be_given_it():
    record("here_model:with_more:width=16")


def test_a_class_whose_objects_can_be_called_will_do():
    record("here_model:Trainer:width=16")


def test_a_name_may_be_given():
    record("here_model:build", "--name", "my own")
    assert read_trace("step.json").name == "my own"


@pytest.mark.parametrize("suffix", [".yaml", ".yml", ".json", ".yaml.gz", ".json.gz"])
def test_the_files_ending_says_how_it_is_written(suffix):
    succeed("record", "here_model:build", "--estimate", "-o", f"step{suffix}")
    assert read_trace(f"step{suffix}").name == "build"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_a_step_is_estimated():
    asked = record("here_model:build")
    first = read_trace("step.json")
    assert first.notes["made"].startswith("estimated without a GPU")
    assert succeed("record", "here_model:build", "-o", "step.json") == asked
    assert read_trace("step.json").operations == first.operations


def test_what_was_there_is_replaced(folder):
    (folder / "step.json").write_text("before")
    record("here_model:build")
    assert read_trace("step.json").operations


def test_a_recording_can_be_simulated_summed_up_and_converted():
    record("here_model:build")
    out = succeed("simulate", "step.json", "--machine", "h200", "--policy", "liveness")
    assert out.startswith("build on h200, ")
    digest = read_trace("step.json").facts.digest
    assert f"digest: {digest}" in succeed("traces", "step.json")
    succeed("convert", "step.json", "-o", "step.yaml.gz")
    again = read_trace("step.yaml.gz")
    assert again.facts.digest == digest
    assert again.notes == read_trace("step.json").notes


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", ["here_model", "here_model:", "here_model.py", "", "a.b.c"])
def test_an_entry_without_a_function_is_refused(entry):
    assert refused(entry).startswith(
        f"{entry!r} names no function; write MODULE:FUNCTION or FILE.py:FUNCTION"
    )


@pytest.mark.parametrize("entry", [":build", ":", " :build"])
def test_an_entry_without_a_module_is_refused(entry):
    assert "module" in refused(entry).lower()


@pytest.mark.parametrize("name", ["nothing", "LAYERS", "__name__"])
def test_a_function_that_is_not_there_is_answered_with_those_that_are(name):
    sentence = refused(f"here_model:{name}")
    assert sentence.startswith(f"'here_model' has no function {name!r}; it has: build, ")
    assert "fails" in sentence


def test_a_module_without_functions_says_so(folder):
    (folder / "here_empty.py").write_text("X = 1\n")
    assert refused("here_empty:f") == "'here_empty' has no function 'f'; it has: none"


@pytest.mark.parametrize(
    "module", ["here_nowhere", "here_model.part", "superneurons.nowhere", "here_a.b.c"]
)
def test_a_module_that_is_not_there_is_refused(module):
    assert refused(f"{module}:f") == (
        f"there is no module {module!r} here or installed; give a module or a file: "
        "my/model.py:build"
    )


@pytest.mark.parametrize("file", ["nowhere.py", "no/where.py", "."])
def test_a_file_that_is_not_there_is_refused(file, folder):
    (folder / "a.py").mkdir()
    if file == ".":
        file = "a.py"
    assert refused(f"{file}:f") == f"there is no file {file}"


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ("depth=3", "function 'build' has no parameter 'depth'; it has: width, batch"),
        ("width=wide", "function 'build', parameter 'width': 'wide' cannot be used: "),
        ("width", "'width' in 'build:width' is not of the form key=value"),
        ("width=8,width=9", "'width' is given twice in 'build:width=8,width=9'"),
    ],
)
def test_a_wrong_parameter_is_refused(parameters, sentence):
    assert refused(f"here_model:build:{parameters}").startswith(sentence)


@pytest.mark.parametrize(("name", "kind"), [("gives_a_number", "int"), ("gives_a_list", "list")])
def test_a_function_that_returns_no_function_is_refused(name, kind):
    assert refused(f"here_model:{name}") == (
        f"'here_model:{name}' returned {kind}; it must return a function without arguments that "
        "runs one training step"
    )


def test_a_step_that_is_not_closed_is_refused():
    assert "not closed" in refused("here_model:keeps")


BEFORE = """
    from pathlib import Path

    Path("ran").touch()


    def build():
        raise AssertionError
"""


@pytest.mark.parametrize("output", ["step.txt", "step", "json", "step.json.bz2", "step.jsonl"])
def test_an_output_with_another_ending_is_refused_before_anything_is_run(output, folder):
    (folder / "here_before.py").write_text(dedent(BEFORE))
    sentence = refuse("record", "here_before:build", "-o", output)
    assert sentence.startswith(f"{output}: a trace file ends in .yaml, .yml, .json, ")
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("output", ["no/step.json", "here_before.py/step.json"])
def test_an_output_that_has_no_folder_is_refused_before_anything_is_run(output, folder):
    (folder / "here_before.py").write_text(dedent(BEFORE))
    assert output in refuse("record", "here_before:build", "-o", output)
    assert not (folder / "ran").exists()


def test_an_output_has_to_be_given():
    result = run("record", "here_model:build")
    assert result.exit_code == 2
    assert "Missing option '-o' / '--output'" in result.stderr


# -- the user's own errors -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fails", "no data set here"),
        ("step_fails", "no batch here"),
        ("fails_later", "no second batch"),
    ],
)
def test_what_the_users_function_or_step_raises_surfaces_as_it_is(name, message, folder):
    with pytest.raises(LookupError) as caught:
        run("record", f"here_model:{name}", "--estimate", "-o", "step.json")
    assert caught.value.args == (message,)
    assert caught.traceback[-1].path == folder / "here_model.py"
    assert {path.name for path in folder.iterdir()} <= {"here_model.py", "__pycache__"}


def test_a_step_that_wants_an_argument_is_the_users_error():
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'batch'"):
        run("record", "here_model:wants_a_batch", "-o", "step.json")


def test_a_failed_recording_leaves_what_was_there(folder):
    (folder / "step.json").write_text("before")
    with pytest.raises(LookupError):
        run("record", "here_model:fails_later", "--estimate", "-o", "step.json")
    assert (folder / "step.json").read_text() == "before"
    names = {path.name for path in folder.iterdir()}
    assert names <= {"step.json", "here_model.py", "__pycache__"}


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("import nothing_like_this", ModuleNotFoundError, "nothing_like_this"),
        ("import here_model.part", ModuleNotFoundError, "here_model.part"),
        ("from torch import nothing_like_this", ImportError, "nothing_like_this"),
        ("from ..above import x", ImportError, "relative import"),
        ("1 / 0", ZeroDivisionError, "division by zero"),
        ("def f(:", SyntaxError, "invalid syntax"),
    ],
    ids=["module", "submodule", "name", "relative", "error", "syntax"],
)
@pytest.mark.parametrize("where", ["here_broken", "here_broken.py"])
def test_what_the_users_module_raises_surfaces_as_it_is(where, text, error, message, folder):
    (folder / "here_broken.py").write_text(text + "\n")
    with pytest.raises(error, match=message) as caught:
        run("record", f"{where}:f", "-o", "step.json")
    assert type(caught.value) is error


@pytest.mark.parametrize("missing", ["here_package.nowhere", "nowhere_like_this"])
def test_a_package_that_lacks_something_itself_is_the_users_error(missing, folder):
    package = folder / "here_package"
    package.mkdir()
    (package / "__init__.py").write_text(f"import {missing}\n")
    (package / "model.py").write_text(MODEL)
    with pytest.raises(ModuleNotFoundError, match=missing):
        run("record", "here_package.model:build", "-o", "step.json")


def test_leaving_is_the_users_choice():
    assert run("record", "here_model:leaves", "-o", "step.json").exit_code == 3


@pytest.mark.parametrize("where", ["here_broken", "here_broken.py"])
def test_a_module_that_failed_is_not_half_there_afterwards(where, folder):
    (folder / "here_broken.py").write_text("def f(): pass\nraise ValueError\n")
    with pytest.raises(ValueError):  # noqa: PT011
        find_entry(f"{where}:f")
    assert "here_broken" not in sys.modules


# -- the present folder ----------------------------------------------------------------------------


NEIGHBOUR = "import here_model\n\nbuild = here_model.build\n"


@pytest.mark.parametrize("where", ["here_uses", "here_uses.py", "sub/here_uses.py"])
def test_modules_of_the_present_folder_can_be_imported(where, folder):
    (folder / "sub").mkdir()
    for place in (folder, folder / "sub"):
        (place / "here_uses.py").write_text(NEIGHBOUR)
    record(f"{where}:build")


def test_modules_of_the_present_folder_can_be_imported_when_the_function_runs(folder):
    (folder / "here_later.py").write_text(
        "def build():\n    import here_model\n    return here_model.build()\n"
    )
    record("here_later:build")


def test_the_search_path_is_as_before(folder):
    before = list(sys.path)
    record("here_model:build")
    assert sys.path == before
    (folder / "here_broken.py").write_text("1 / 0\n")
    with pytest.raises(ZeroDivisionError):
        find_entry("here_broken:f")
    assert sys.path == before
    with pytest.raises(InvalidInput):
        find_entry("here_nowhere:f")
    assert sys.path == before


def test_what_the_users_module_adds_to_the_search_path_stays(folder, monkeypatch):
    (folder / "lib").mkdir()
    (folder / "lib" / "here_library.py").write_text(MODEL)
    (folder / "here_adds.py").write_text(
        "import sys\n\nsys.path.insert(0, 'lib')\n\n"
        "def build():\n    import here_library\n    return here_library.build()\n"
    )
    monkeypatch.setattr(sys, "path", list(sys.path))
    record("here_adds:build")
    assert "lib" in sys.path


# -- from Python -----------------------------------------------------------------------------------


def test_finding_an_entry_builds_nothing():
    name, make = find_entry("here_model:fails")
    assert name == "fails"
    with pytest.raises(LookupError):
        make()


def test_a_function_is_recorded_from_python_too():
    trace, estimated = record_function("here_model:build:width=16", "mine", guess=True)
    assert (trace.name, estimated) == ("mine", True)


def test_the_function_is_called_once(folder):
    (folder / "here_counts.py").write_text(
        MODEL + "\nCALLS = []\n\ndef counted():\n    CALLS.append(1)\n    return build()\n"
    )
    record("here_counts:counted")
    assert sys.modules["here_counts"].CALLS == [1]


# -- in a process of its own -----------------------------------------------------------------------


def process(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)


def test_the_users_traceback_is_what_a_failing_step_prints():
    done = process("-m", "superneurons", "record", "here_model:step_fails", "-o", "step.json")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "LookupError: no batch here"
    assert 'here_model.py", line' in done.stderr
    assert not Path("step.json").exists()


WITHOUT_TORCH = """
import importlib.machinery
import sys

finder = importlib.machinery.PathFinder
found = finder.find_spec


def find_spec(name, path=None, target=None):
    if name.partition(".")[0] == "torch":
        return None
    return found(name, path, target)


finder.find_spec = find_spec
from superneurons.cli import main

main()
"""


def test_without_torch_recording_is_refused_in_a_sentence_and_the_rest_goes_on(folder):
    (folder / "without.py").write_text(WITHOUT_TORCH)
    done = process("without.py", "record", "here_model:build", "-o", "step.json")
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line == (
        "superneurons: recording needs PyTorch: pip install 'superneurons[torch]', or a build of "
        "it from pytorch.org"
    )
    record("here_model:build")
    done = process("without.py", "convert", "step.json", "-o", "again.yaml")
    assert (done.returncode, done.stderr) == (0, "")
    done = process("without.py", "simulate", "again.yaml", "--machine", "h200", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert {report["trace"] for report in json.loads(done.stdout)} == {"build"}
