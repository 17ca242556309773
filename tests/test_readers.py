"""Readers of foreign formats: what they make of a file, worked out by hand, and what they refuse.

DTR's logs have no licence and G10's are large: those in `../shared/data` are read where they are.
"""

import gzip
import json
import pickle
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from superneurons.cli import main
from superneurons.errors import InvalidInput, InvalidTrace
from superneurons.machines import find_machine
from superneurons.policies import decide, find_policy
from superneurons.sim import simulate
from superneurons.traces import Release, Trace, find_trace, read_trace, write_trace
from superneurons.traces.readers import find_format, read_foreign
from superneurons.traces.readers.kinds import kind_of, recompute_of

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
BIG = find_machine("h200:device_memory=1TiB,host_memory=1TiB")
READABLE = (
    "what can be read: a DTR operator log, a G10 kernel list, a PyTorch memory snapshot, "
    "a trace of this package"
)


def shared(name: str) -> Path:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{path} is not there: it is not ours to ship")
    return path


def refusal(path: Path) -> str:
    """Return what is wrong with a foreign file: one line that begins with its name."""
    with pytest.raises(InvalidInput) as caught:
        read_foreign(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


def device_peak(trace: Trace, policy: str = "liveness") -> int:
    return decide(find_policy(policy), trace, BIG).ledger.device_peak_nbytes


# -- DTR: writing logs -----------------------------------------------------------------------------

START = {"INSTRUCTION": "ANNOTATE", "ANNOTATION": "START"}
BACKWARD = {"INSTRUCTION": "ANNOTATE", "ANNOTATION": "BACKWARD"}


def constant(name: str, nbytes: int) -> list[dict]:
    return [
        {"INSTRUCTION": "CONSTANT", "NAME": name},
        {"INSTRUCTION": "MEMORY", "NAME": name, "MEMORY": str(nbytes)},
    ]


def call(op: str, args: str, results: dict[str, tuple[int, int]], ns: int = 1) -> list[dict]:
    """A call of *op* with arguments like "a b"; each result has its bytes and its alias."""
    lines = [
        {
            "INSTRUCTION": "CALL",
            "NAME": op,
            "ARGS": args.split(),
            "RESULT": list(results),
            "TIME": str(ns),
        }
    ]
    for name, (nbytes, alias) in results.items():
        lines.append({"INSTRUCTION": "MEMORY", "NAME": name, "MEMORY": str(nbytes)})
        lines.append({"INSTRUCTION": "ALIAS", "NAME": name, "ALIAS": str(alias)})
    return lines


def mutate(op: str, args: str, indices: list[int], ns: int = 1) -> dict:
    return {
        "INSTRUCTION": "MUTATE",
        "NAME": op,
        "ARGS": args.split(),
        "MUTATE": indices,
        "TIME": str(ns),
    }


def copy(dst: str, src: str) -> dict:
    return {"INSTRUCTION": "COPY", "DST": dst, "SRC": src}


def copy_from(dst: str, src: str) -> dict:
    return {"INSTRUCTION": "COPY_FROM", "DST": dst, "SRC": src}


def release(name: str) -> dict:
    return {"INSTRUCTION": "RELEASE", "NAME": name}


def log(path: Path, *lines: dict | str) -> Path:
    """Write a log, one line each; a text is written as it is."""
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("".join(f"{text}\n" for text in texts))
    return path


def small() -> list[dict]:
    """A linear layer after a ReLU in place, forward and backward; see the tests for its bytes."""
    return [
        release("before"),
        START,
        *constant("w", 8),
        *constant("x", 16),
        copy("x2", "x"),
        release("x"),
        *call("cudnn_convolution", "x2 w", {"a": (32, -1)}, 100),
        mutate("relu_", "a", [0], 20),
        *call("view", "a", {"v": (32, 0)}, 3),
        release("a"),
        *call("mm", "v w", {"y": (4, -1)}, 50),
        *call("dropout", "y", {"z": (4, -1), "mask": (1, -1)}, 5),
        release("y"),
        release("elsewhere"),
        BACKWARD,
        *call("mm_backward", "z mask v w", {"g": (8, -1), "h": (32, -1)}, 70),
        release("v"),
        release("z"),
        release("mask"),
        release("h"),
        release("x2"),
    ]


@pytest.fixture
def step(tmp_path) -> Trace:
    return read_foreign(log(tmp_path / "small.log", *small()))[1]


# -- DTR: what is made of them ---------------------------------------------------------------------


def test_operations_are_calls_mutations_and_constants_that_do_not_last(step):
    found = [(op.name, op.kind, op.phase, op.device_ns, op.host_ns) for op in step.operations]
    assert found == [
        ("input.0", "input", "forward", 0, 0),
        ("cudnn_convolution.1", "conv", "forward", 100, 0),
        ("relu_.2", "activation", "forward", 20, 0),
        ("view.3", "view", "forward", 3, 0),
        ("mm.4", "matmul", "forward", 50, 0),
        ("dropout.5", "dropout", "forward", 5, 0),
        ("mm_backward.6", "matmul", "backward", 70, 0),
        ("end", "end", "backward", 0, 0),
    ]
    assert {op.name: op.recompute for op in step.operations if op.recompute != "pure"} == {
        "input.0": "opaque",
        "dropout.5": "random",
        "end": "opaque",
    }


def test_a_mutation_is_a_copy_and_an_alias_no_storage(step):
    flows = {op.name: (op.reads, op.writes) for op in step.operations}
    assert flows == {
        "input.0": ((), ("x",)),
        "cudnn_convolution.1": (("x", "w"), ("a",)),
        "relu_.2": (("a",), ("a#1",)),
        "view.3": (("a#1",), ()),
        "mm.4": (("a#1", "w"), ("y",)),
        "dropout.5": (("y",), ("z", "mask")),
        "mm_backward.6": (("z", "mask", "a#1", "w"), ("g", "h")),
        "end": (("g",), ()),
    }


def test_storages_have_the_kinds_that_their_lives_tell(step):
    kinds = {each.name: (each.kind, each.nbytes, each.alive_at_start) for each in step.storages}
    assert kinds == {
        "w": ("parameter", 8, True),
        "x": ("input", 16, False),
        "a": ("activation", 32, False),
        "a#1": ("activation", 32, False),
        "y": ("activation", 4, False),
        "z": ("activation", 4, False),
        "mask": ("activation", 1, False),
        "g": ("parameter-gradient", 8, False),
        "h": ("activation-gradient", 32, False),
    }


def test_a_storage_is_released_with_its_last_name(step):
    assert step.releases == (
        Release(storage="x", place=7),
        Release(storage="a", place=3),
        Release(storage="a#1", place=7),
        Release(storage="y", place=6),
        Release(storage="z", place=7),
        Release(storage="mask", place=7),
        Release(storage="h", place=7),
    )


def test_the_bytes_of_a_log_are_its_own(step):
    # w, x, the second a, z and mask are there in backward, and it makes g and h: y is gone.
    assert device_peak(step) == 8 + 16 + 32 + 4 + 1 + 8 + 32
    # In the mutation both versions of a are there.
    assert step.facts.fresh_nbytes[2] == 32
    assert step.facts.floor_nbytes == 8 + 4 + 1 + 32 + 8 + 32


def test_the_notes_say_what_is_lacking_and_taken(step):
    assert step.notes["made"] == "from small.log, a DTR operator log"
    assert step.notes["lacking"] == "what autograd saves, workspaces, the optimizer"
    assert step.notes["ignored"] == "1 releases of names from before the start"
    assert "a mutation is a copy" in step.notes["taken"]


def test_backward_is_told_by_the_mark_and_only_without_it_by_names(tmp_path):
    forward = [START, *constant("w", 8), *call("max_pool2d_backward", "w", {"a": (4, -1)})]
    backward = call("relu_backward", "a", {"b": (4, -1)})

    def phases(*lines: dict) -> tuple[list[str], str]:
        trace = read_foreign(log(tmp_path / "x.log", *lines))[1]
        return [op.phase for op in trace.operations], trace.notes["lacking"].partition("mizer")[2]

    assert phases(*forward, BACKWARD, *backward)[0] == ["forward", "backward", "backward"]
    assert phases(*forward, *backward) == (
        ["backward", "backward", "backward"],
        ", a mark where backward starts (the operations' names tell)",
    )
    assert phases(START, *constant("w", 8), *call("relu", "w", {"a": (4, -1)})) == (
        ["forward", "forward"],
        ", a backward phase",
    )


def test_a_log_without_a_start_counts_from_its_first_line(tmp_path):
    lines = [*constant("w", 8), *call("relu", "w", {"a": (4, -1)}), release("a")]
    trace = read_foreign(log(tmp_path / "x.log", *lines))[1]
    assert "a mark where the step starts" in trace.notes["lacking"]
    assert device_peak(trace) == 12


def test_a_constant_after_the_first_operation_is_not_there_at_the_start(tmp_path):
    lines = [
        *constant("w", 8),
        *call("relu", "w", {"a": (100, -1)}),
        release("a"),
        *constant("late", 50),
        *call("relu", "late", {"b": (1, -1)}),
        release("b"),
    ]
    trace = read_foreign(log(tmp_path / "x.log", *lines))[1]
    assert device_peak(trace) == 108
    # It is never released: so nobody may drop it before the end.
    assert (trace.operations[-1].name, trace.operations[-1].reads) == ("end", ("late",))


def test_a_name_that_is_used_anew_gets_a_storage_of_its_own(tmp_path):
    lines = [
        *constant("w", 8),
        *call("relu", "w", {"a": (4, -1)}),
        release("a"),
        *call("relu", "w", {"a": (6, -1)}),
        release("a"),
    ]
    trace = read_foreign(log(tmp_path / "x.log", *lines))[1]
    assert [(each.name, each.nbytes) for each in trace.storages] == [("w", 8), ("a", 4), ("a#1", 6)]


def test_a_gzipped_log_reads_the_same_whatever_its_name(tmp_path, step):
    path = tmp_path / "small.log"
    path.write_bytes(gzip.compress(path.read_bytes()))
    assert read_foreign(path)[1].facts.digest == step.facts.digest


@pytest.mark.parametrize("policy", ["liveness", "liveness+offload", "superneurons"])
def test_a_log_can_be_simulated_and_takes_the_time_that_was_logged(step, policy):
    report = simulate(step, find_policy(policy), BIG)
    assert report.fits
    assert report.compute_ns - report.recomputed_ns == 100 + 20 + 3 + 50 + 5 + 70


def test_a_log_survives_its_trace_file(step, tmp_path):
    write_trace(step, tmp_path / "small.json.gz")
    again = read_trace(tmp_path / "small.json.gz")
    assert (again.facts.digest, again.notes) == (step.facts.digest, step.notes)


# -- DTR: any log ----------------------------------------------------------------------------------


@st.composite
def logs(draw: st.DrawFn) -> list[dict]:
    """Return the lines of a log that is right."""
    lines = [START]
    held: list[str] = []
    sizes = st.integers(0, 64)
    for number in range(draw(st.integers(1, 30))):
        new = f"x{number}"
        action = draw(st.sampled_from(["constant", "call", "call", "mutate", "names", "release"]))
        if action == "constant" or not held:
            lines += constant(new, draw(sizes))
            held.append(new)
        elif action == "call":
            args = draw(st.lists(st.sampled_from(held), max_size=3))
            results = {}
            for k in range(draw(st.integers(0, 3))):
                alias = draw(st.integers(-1, len(args) - 1))
                results[f"{new}.{k}"] = (draw(sizes), alias)
            op = draw(st.sampled_from(["relu", "mm", "mm_backward", "dropout"]))
            lines += call(op, " ".join(args), results, draw(st.integers(0, 9)))
            held += results
        elif action == "mutate":
            args = draw(st.lists(st.sampled_from(held), min_size=1, max_size=3, unique=True))
            indices = draw(st.lists(st.sampled_from(range(len(args))), unique=True))
            lines.append(mutate("add_", " ".join(args), indices, 2))
        elif action == "names":
            src, dst = draw(st.sampled_from(held)), draw(st.sampled_from([*held, new]))
            lines.append(copy(dst, src) if dst == new else copy_from(dst, src))
            held += [new] if dst == new else []
        else:
            name = draw(st.sampled_from([*held, "elsewhere"]))
            lines.append(release(name))
            held = [each for each in held if each != name]
        if draw(st.integers(0, 9)) == 9:
            lines.append(BACKWARD)
    return [*lines, *call("loss", "", {"end": (draw(sizes), -1)}, 1)]


def accounted(lines: list[dict]) -> int:
    """Return a log's peak by plain accounting: a storage is the set of the names that hold it.

    Constants that stand before the first operation and outlive the log are there all the time.
    """
    storages: list[tuple[set[str], int]] = []
    opening: list[tuple[set[str], int]] = []
    moments: list[list[int]] = []  # for each moment, the storages that are there

    def of(name: str) -> set[str]:
        return next(names for names, _ in storages if name in names)

    def there() -> list[int]:
        return [k for k, (names, _) in enumerate(storages) if names]

    began = False
    position = 0
    while position < len(lines):
        line = lines[position]
        what = line["INSTRUCTION"]
        if what == "CONSTANT":
            position += 1
            storages.append(({line["NAME"]}, int(lines[position]["MEMORY"])))
            opening += [] if began else [storages[-1]]
            moments.append(there())
        elif what == "CALL":
            began = True
            for result in line["RESULT"]:
                memory, alias = lines[position + 1 : position + 3]
                position += 2
                if alias["ALIAS"] == "-1":
                    storages.append(({result}, int(memory["MEMORY"])))
                else:
                    of(line["ARGS"][int(alias["ALIAS"])]).add(result)
            moments.append(there())
        elif what == "MUTATE":
            began = True
            moments.append(there())
            for index in line["MUTATE"]:
                name = line["ARGS"][index]
                _, nbytes = next(each for each in storages if name in each[0])
                storages.append((set(), nbytes))
                moments[-1].append(len(storages) - 1)
            for k, index in enumerate(line["MUTATE"], start=len(storages) - len(line["MUTATE"])):
                of(line["ARGS"][index]).remove(line["ARGS"][index])
                storages[k][0].add(line["ARGS"][index])
        elif what == "COPY":
            of(line["SRC"]).add(line["DST"])
        elif what == "COPY_FROM" and line["DST"] != line["SRC"]:
            of(line["DST"]).remove(line["DST"])
            of(line["SRC"]).add(line["DST"])
        elif what == "RELEASE" and any(line["NAME"] in names for names, _ in storages):
            of(line["NAME"]).remove(line["NAME"])
        position += 1
    always = {k for k, each in enumerate(storages) if each[0] and each in opening}
    return max(sum(storages[k][1] for k in always.union(moment)) for moment in moments)


@given(logs())
def test_the_device_peak_of_any_log_is_that_of_plain_accounting(tmp_path_factory, lines):
    path = log(tmp_path_factory.getbasetemp() / "any.log", *lines)
    trace = read_foreign(path)[1]
    assert device_peak(trace) == accounted(lines)
    assert sum(op.device_ns or 0 for op in trace.operations) == sum(
        int(line.get("TIME", 0)) for line in lines
    )
    if "phases" in trace.has:  # what is decided is proved
        assert device_peak(trace, "superneurons") >= trace.facts.floor_nbytes


@pytest.mark.parametrize(
    ("name", "nbytes", "operations", "ns"),
    [  # the peaks are simrd's, without a budget
        ("dtr/unet-b6.log", 8_415_764_640, 247, 435_278_292),
        ("dtr/resnet32-b56.log", 10_061_179_152, 286, 291_905_487),
    ],
)
def test_a_real_log_has_the_peak_of_its_own_simulator(name, nbytes, operations, ns):
    trace = read_foreign(shared(name))[1]
    assert abs(device_peak(trace) - nbytes) <= 1024
    logged = [op for op in trace.operations if op.kind not in ("input", "end")]
    assert len(logged) == operations
    report = simulate(trace, find_policy("superneurons"), BIG)
    assert report.compute_ns - report.recomputed_ns == ns
    assert report.device_peak_bytes < 0.75 * nbytes


# -- DTR: what is refused --------------------------------------------------------------------------

A = [START, *constant("w", 8), *call("relu", "w", {"a": (4, -1)})]  # 6 lines


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        (["{"], "line 7: this is no JSON: Input data was truncated"),
        (["oops"], "line 7: this is no JSON: JSON is malformed: invalid character (byte 0)"),
        (['{"INSTRUCTION": "RELEASE", "NAME": "a"} {}'], "line 7: this is no JSON: "),
        (["[]"], "line 7: Expected `object`, got `array`"),
        (
            [{"INSTRUCTION": "PIN", "NAME": "a"}],
            "line 7: there is no instruction 'PIN'; there are CONSTANT, MEMORY, ALIAS, CALL, "
            "MUTATE, COPY, COPY_FROM, RELEASE, ANNOTATE",
        ),
        ([{"NAME": "a"}], "line 7: Object missing required field `INSTRUCTION`"),
        (["", {"INSTRUCTION": "COPY", "DST": "b"}], "line 8: Object missing required field `SRC`"),
        (
            [{"INSTRUCTION": "MEMORY", "NAME": "a", "MEMORY": "-5"}],
            "line 7: MEMORY: Expected `int` >= 0",
        ),
        (
            [{"INSTRUCTION": "MEMORY", "NAME": "a", "MEMORY": "much"}],
            "line 7: MEMORY: Expected `int`, got `str`",
        ),
        (
            [{"INSTRUCTION": "MEMORY", "NAME": "a", "MEMORY": "5"}],
            "line 7: this MEMORY follows no CONSTANT and no CALL",
        ),
        ([copy("c", "b")], "line 7: 'b' is defined by no line before"),
        ([copy_from("b", "a")], "line 7: 'b' is defined by no line before"),
        (call("relu", "a b", {}), "line 7: 'b' is defined by no line before"),
        (["", mutate("relu_", "b", [0])], "line 8: 'b' is defined by no line before"),
        ([release("a"), copy("c", "a")], "line 8: 'a' has been released"),
        ([release("a"), release("a")], "line 8: 'a' has been released"),
        ([copy("w", "a")], "line 7: 'w' is defined already"),
        (constant("a", 4), "line 8: 'a' is defined already"),
        (call("relu", "w", {"a": (4, -1)}), "line 9: 'a' is defined already"),
        (
            call("view", "a", {"b": (4, 1)}),
            "line 9: 'b' is an alias of argument 1; there are 1",
        ),
        ([mutate("relu_", "a", [1])], "line 7: it mutates argument 1; there are 1"),
        ([mutate("relu_", "a w a", [0, 2])], "line 7: it mutates one argument twice: a, a"),
        (
            call("relu", "w", {"b": (4, -1)})[:2],
            "line 7: the log is cut off: it ends before MEMORY and ALIAS of 'b'",
        ),
        (
            [*call("relu", "w", {"b": (4, -1)})[:2], release("a")],
            "line 9: here the ALIAS of 'b' is due, for line 7",
        ),
        (
            [constant("b", 4)[0], constant("c", 4)[1]],
            "line 8: here the MEMORY of 'b' is due, for line 7",
        ),
    ],
)
def test_what_cannot_be_followed_is_told_with_its_line(lines, sentence, tmp_path):
    assert refusal(log(tmp_path / "x.log", *A, *lines)).startswith(sentence)


def test_a_log_that_is_cut_off_is_told_so(tmp_path):
    path = log(tmp_path / "x.log", *A)
    path.write_bytes(path.read_bytes()[:-9])
    assert refusal(path) == "line 6: the log is cut off inside this line, its last"
    path.write_bytes(gzip.compress(log(path, *A).read_bytes())[:-20])
    assert refusal(path) == (
        "cannot be read: Compressed file ended before the end-of-stream marker was reached"
    )


def test_text_that_is_no_utf8_is_told_with_its_line(tmp_path):
    path = log(tmp_path / "x.log", *A)
    path.write_bytes(path.read_bytes() + b'{"INSTRUCTION": "RELEASE", "NAME": "\xff"}\n')
    assert refusal(path).startswith("line 7: this is no JSON: ")


def test_a_log_without_operations_is_refused(tmp_path):
    path = log(tmp_path / "x.log", *constant("w", 8), release("w"))
    assert refusal(path) == "there is no CALL and no MUTATE in it, so nothing to simulate"
    log(path, *call("relu", "", {}), START)
    assert refusal(path) == (
        "there is no CALL and no MUTATE after its START, so nothing to simulate"
    )


def test_a_release_of_an_unknown_name_is_refused_if_there_was_no_start(tmp_path):
    path = log(tmp_path / "x.log", *A[1:], release("b"))
    assert refusal(path) == "line 6: 'b' is defined by no line before"


# -- G10 -------------------------------------------------------------------------------------------

RULE = "_" * 68


def tensor(number: int, nbytes: int, lasting: bool = False) -> str:
    kind = f"Is weight (global)?: {int(lasting)}, Size in byte: {nbytes}"
    return f"tensor{number} {kind}, Range:0--{nbytes}"


IMAGE, WEIGHT, SPACE, OUT = tensor(0, 100), tensor(1, 10, True), tensor(2, 7), tensor(3, 50)
UP, GRADIENT, SUM, SPARE = tensor(4, 50), tensor(5, 10), tensor(6, 10), tensor(7, 9)
TENSORS = [IMAGE, WEIGHT, SPACE, OUT, UP, GRADIENT, SUM, SPARE]
KERNELS = [  # name, cycles of 1.2 GHz, inputs, outputs
    ("Conv2d_Forward", 1200, [WEIGHT, IMAGE], [SPACE, OUT]),
    ("makeLoss", 600, [OUT], [UP]),
    ("Conv2d_Backward_Weight", 2401, [IMAGE, UP], [GRADIENT]),
    ("Conv2d_Backward_Weight", 1, [UP], [SUM]),
    ("Add_MultiGredient", 12, [SUM, GRADIENT], [GRADIENT]),
    ("Conv2d_Apply_Grad", 120, [WEIGHT, GRADIENT], [WEIGHT]),
]


def kernels() -> list[str]:
    lines = []
    for number, (name, cycles, inputs, outputs) in enumerate(KERNELS):
        lines += [f"Kernel ID: {number}, Name: {name}", "Parent OP ID:185; Name: Convolution"]
        lines += [f"Execution Time: {cycles}", "(2,3,4,4)", "Input Tensors:", *inputs]
        lines += ["Output Tensors:", *outputs, RULE]
    return lines


def g10(folder: Path, lines: list[str] | None = None, tensors: list[str] = TENSORS) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "tensors.config").write_text("\n".join([*tensors, ""]))
    (folder / "kernels.config").write_text(
        "\n".join([*(kernels() if lines is None else lines), ""])
    )
    return folder


@pytest.fixture
def listed(tmp_path) -> Trace:
    return read_foreign(g10(tmp_path / "net"))[1]


def test_kernels_become_operations_and_cycles_times(listed):
    found = [(op.name, op.kind, op.phase, op.device_ns, op.host_ns) for op in listed.operations]
    assert found == [
        ("Conv2d_Forward.0", "conv", "forward", 1000, None),
        ("makeLoss.1", "loss", "forward", 500, None),
        ("Conv2d_Backward_Weight.2", "conv", "backward", 2001, None),
        ("Conv2d_Backward_Weight.3", "conv", "backward", 1, None),
        ("Add_MultiGredient.4", "add", "backward", 10, None),
        ("Conv2d_Apply_Grad.5", "update", "optimizer", 100, None),
    ]


def test_an_output_that_is_there_is_the_next_version(listed):
    assert [(op.reads, op.writes) for op in listed.operations] == [
        (("tensor1", "tensor0"), ("tensor2", "tensor3")),
        (("tensor3",), ("tensor4",)),
        (("tensor0", "tensor4"), ("tensor5",)),
        (("tensor4",), ("tensor6",)),
        (("tensor6", "tensor5"), ("tensor5@1",)),
        (("tensor1", "tensor5@1"), ("tensor1@1",)),
    ]


def test_tensors_become_storages_by_who_writes_and_reads_them(listed):
    kinds = {each.name: (each.kind, each.nbytes, each.alive_at_start) for each in listed.storages}
    assert kinds == {
        "tensor0": ("input", 100, True),
        "tensor1": ("parameter", 10, True),
        "tensor2": ("activation", 7, False),
        "tensor3": ("activation", 50, False),
        "tensor4": ("activation", 50, False),
        "tensor5": ("parameter-gradient", 10, False),
        "tensor6": ("activation-gradient", 10, False),
    }


def test_tensors_go_after_their_last_use(listed):
    # tensor2 is gone when makeLoss makes tensor4
    assert device_peak(listed) == 100 + 10 + 50 + 50
    report = simulate(listed, find_policy("superneurons"), BIG)
    assert report.compute_ns == 1000 + 500 + 2001 + 1 + 10 + 100


def test_what_a_loading_kernel_makes_is_input(tmp_path):
    lines = ["Kernel ID: 9, Name: LoadData_A0", "Execution Time: 5", "Input Tensors:"]
    lines += ["Output Tensors:", IMAGE, RULE, *kernels()]
    trace = read_foreign(g10(tmp_path / "net", lines))[1]
    image = next(each for each in trace.storages if each.name == "tensor0")
    assert (image.kind, image.alive_at_start) == ("input", False)


@pytest.mark.parametrize("name", ["", "kernels.config", "tensors.config"])
def test_folder_and_either_file_are_the_same(name, listed, tmp_path):
    found, trace = read_foreign(tmp_path / "net" / name)
    assert (found.title, trace.name) == ("a G10 kernel list", "net")
    assert trace.facts.digest == listed.facts.digest
    assert "1.2 GHz is taken" in trace.notes["lacking"]


@pytest.mark.parametrize("missing", ["kernels.config", "tensors.config"])
def test_one_file_without_the_other_is_refused(missing, tmp_path):
    folder = g10(tmp_path / "net")
    (folder / missing).unlink()
    with pytest.raises(InvalidInput) as caught:
        read_foreign(folder)
    assert str(caught.value) == (
        f"{folder / missing}: there is no such file; G10's kernels.config and tensors.config "
        "belong together, put both into one folder"
    )


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda lines: lines[:-1], "line 58: the file is cut off inside kernel 5"),
        (lambda lines: lines[:-2], "line 57: the file is cut off inside kernel 5"),
        (lambda lines: ["tensor", *lines[1:]], "line 1: here a line 'Kernel ID: ..., Name: ...'"),
        (lambda lines: lines[:1] + lines, "line 2: kernel 0 has not ended here"),
        (lambda lines: [*lines[:2], *lines[3:]], "line 10: kernel 0 ends without time or tensors"),
        (lambda lines: [*lines[:1], "Execution Time: fast", *lines[2:]], "line 2: this is not und"),
        (
            lambda lines: [*lines[:5], "tensor1 Is weig", *lines[6:]],
            "line 6: here a tensor with its size is due, not 'tensor1 Is weig'",
        ),
        (
            lambda lines: [*lines[:5], tensor(1, 11, True), *lines[6:]],
            "line 6: 'tensor1' is not in tensors.config, or has another size there: are the two "
            "of one run?",
        ),
        (lambda lines: [RULE], "there is no kernel in it, so nothing to simulate"),
    ],
)
def test_a_kernel_list_that_cannot_be_followed_is_told_with_its_line(change, sentence, tmp_path):
    folder = g10(tmp_path / "net", change(kernels()))
    with pytest.raises(InvalidInput) as caught:
        read_foreign(folder)
    assert str(caught.value).startswith(f"{folder / 'kernels.config'}: {sentence}")


def test_a_tensor_list_that_cannot_be_followed_is_told_with_its_line(tmp_path):
    path = g10(tmp_path / "net", tensors=[*TENSORS, IMAGE]) / "tensors.config"
    assert refusal(path) == "line 9: 'tensor0' is listed already"
    path.write_text("\n".join([*TENSORS, IMAGE[:20]]))
    assert refusal(path) == (
        f"line 9: here a tensor with its size is due, not {IMAGE[:20].strip()!r}"
    )
    path.write_bytes(path.read_bytes() + b"\xff")
    assert refusal(path) == "cannot be read as text: invalid start byte"


def test_two_kernels_of_one_number_and_name_are_refused(tmp_path):
    folder = g10(tmp_path / "net", [*kernels(), *kernels()])
    with pytest.raises(InvalidTrace) as caught:
        read_foreign(folder)
    assert str(caught.value).startswith(f"{folder}: trace 'net', operations[6]: two operations")


def test_the_real_kernel_list_takes_the_time_of_its_profile():
    trace = read_foreign(shared("g10/vit512"))[1]
    # results/VIT/cudnn512.txt of platformxlab/G10 begins: 0000 6.845440 ms
    assert trace.operations[0].device_ns == 6_845_440
    assert (len(trace.operations), len(trace.storages)) == (1489, 1563)
    report = simulate(trace, find_policy("liveness+offload"), BIG)
    assert report.compute_ns == sum(op.device_ns or 0 for op in trace.operations) == 2_538_983_108
    assert report.device_peak_bytes < device_peak(trace)


# -- names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("cudnn_convolution_backward", "conv"),
        ("addmm", "matmul"),
        ("BatchMatMul_Backward", "matmul"),
        ("Linear_Forward", "matmul"),
        ("add_", "add"),
        ("_cat", "concat"),
        ("embedding_dense_backward", "embedding"),
        ("_scaled_dot_product_attention", "attention"),
        ("cudnn_batch_norm", "norm"),
        ("normal_", "random"),
        ("relu_", "activation"),
        ("threshold_backward", "activation"),
        ("max_pool2d_with_indices_backward", "pool"),
        ("native_dropout", "dropout"),
        ("nll_loss_forward", "loss"),
        ("_log_softmax", "softmax"),
        ("constant_padding_nd", "constant"),
        ("sum_dim_IntList", "sum"),
        ("t", "t"),
        ("_", "_"),
    ],
)
def test_kinds_are_told_by_names(name, kind):
    assert kind_of(name) == kind
    assert recompute_of(kind) == ("random" if kind in ("dropout", "random") else "pure")


# -- finding the format ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"\x00\x01\x02", f"is of no known format; {READABLE}"),
        (b"tensor, bytes\n1, 2\n", f"is of no known format; {READABLE}"),
        (b'{"a": 1}', f"is of no known format; {READABLE}"),
        (
            b'{"schemaVersion": 1, "traceEvents": []}',
            f"is a Kineto timeline; it has no sizes, so it cannot be simulated; {READABLE}",
        ),
        (
            b'{"schema": "1.0.2-chakra.0.0.4", "nodes": []}',
            f"is a Chakra execution trace, which this version does not read; {READABLE}",
        ),
        (
            b'{"workload_graph": []}',
            f"is a Chakra execution trace, which this version does not read; {READABLE}",
        ),
        (
            b"^\x12\x10\n\x06schema\xea\x01\x051.0.1",
            f"is a Chakra execution trace, which this version does not read; {READABLE}",
        ),
        (b"PK\x03\x04", f"is an archive; unpack it and give a file that was in it; {READABLE}"),
        (
            b'{"format":"superneurons-schedule/1"}',
            f"is a schedule of this package, not a trace; {READABLE}",
        ),
    ],
)
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzipped"])
def test_what_is_no_foreign_file_is_refused_in_one_sentence(raw, sentence, packed, tmp_path):
    path = tmp_path / "x.log"
    path.write_bytes(gzip.compress(raw) if packed else raw)
    assert refusal(path) == sentence


def test_a_missing_file_and_a_strange_folder_are_refused(tmp_path):
    assert refusal(tmp_path / "x") == "cannot be read: No such file or directory"
    assert refusal(tmp_path).startswith(
        "is a folder with neither kernels.config nor tensors.config in it; what can be read: "
    )


def test_a_snapshot_is_known_by_its_pickle(tmp_path):
    path = tmp_path / "x"
    for protocol in range(2, 6):
        path.write_bytes(pickle.dumps({"device_traces": []}, protocol))
        assert find_format(path).title == "a PyTorch memory snapshot"


def test_a_trace_of_ours_is_read_as_it_is(tmp_path):
    for name in ("x.yaml", "x.json", "x.json.gz"):
        write_trace(find_trace("random:seed=5"), tmp_path / name)
        found, trace = read_foreign(tmp_path / name)
        assert found.title == "a trace of this package"
        assert trace.facts.digest == find_trace("random:seed=5").facts.digest


# -- the command -----------------------------------------------------------------------------------


def convert(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, ["convert", *map(str, arguments)], catch_exceptions=False)
    return result.exit_code, result.stdout, result.stderr


def test_convert_writes_the_trace_and_says_what_is_lacking(step, tmp_path):
    foreign, made = tmp_path / "small.log", tmp_path / "small.yaml"
    assert convert(foreign, "-o", made) == (
        0,
        f"{foreign}: a DTR operator log. 8 operations, 9 storages, written to {made}. "
        "It lacks: what autograd saves, workspaces, the optimizer.\n",
        "",
    )
    assert read_trace(made).facts.digest == step.facts.digest


def test_convert_spells_a_trace_anew(tmp_path):
    yaml, packed = tmp_path / "x.yaml", tmp_path / "x.json.gz"
    step = find_trace("random:seed=5")
    write_trace(step, yaml)
    assert convert(yaml, "-o", packed) == (
        0,
        f"{yaml}: a trace of this package. {len(step.operations)} operations, "
        f"{len(step.storages)} storages, written to {packed}.\n",
        "",
    )
    assert read_trace(packed).facts.digest == step.facts.digest


def test_convert_refuses_a_wrong_ending_before_it_reads(tmp_path):
    assert convert(tmp_path / "nothing", "-o", "x.log") == (
        2,
        "",
        "superneurons: x.log: a trace file ends in .yaml, .yml, .json, .yaml.gz, .yml.gz, "
        ".json.gz; give -o such a name\n",
    )


def test_convert_writes_nothing_if_it_cannot_read(tmp_path):
    path = log(tmp_path / "x.log", *A, copy("c", "b"))
    code, out, err = convert(path, "-o", tmp_path / "x.json")
    assert (code, out) == (2, "")
    assert err == f"superneurons: {path}: line 7: 'b' is defined by no line before\n"
    assert [each.name for each in tmp_path.iterdir()] == ["x.log"]
