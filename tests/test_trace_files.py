"""Trace files: what is written comes back, and what is wrong is told with its place."""

import gzip
import inspect
import json
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from superneurons.errors import InvalidInput, InvalidTrace
from superneurons.traces import Trace, find_trace, model, read_trace, write_trace
from superneurons.traces.file import SUFFIXES

FORMAT = "superneurons-trace/1"


def step() -> dict:
    """Return a step that is right: the tests below break it, one thing at a time."""
    return {
        "format": FORMAT,
        "name": "tiny",
        "places": "everywhere",
        "times": "none",
        "storages": [
            {"name": "w", "kind": "parameter", "nbytes": 8, "alive_at_start": True},
            {"name": "a", "kind": "activation", "nbytes": 16},
            {"name": "b", "kind": "activation", "nbytes": 16},
            {"name": "g", "kind": "activation-gradient", "nbytes": 16},
        ],
        "values": [{"name": "a@1", "storage": "a", "version": 1}],
        "operations": [
            operation("f1", "forward", reads=["w"], writes=["a"]),
            operation("f2", "forward", reads=["a"], writes=["a@1"]),
            operation("f3", "forward", reads=["a@1"], writes=["b"]),
            operation("b3", "backward", reads=["b", "a@1"], writes=["g"]),
        ],
    }


def operation(name: str, phase: str, reads: list[str], writes: list[str]) -> dict:
    return {"name": name, "kind": "norm", "phase": phase, "reads": reads, "writes": writes}


def altered(keys: tuple[str | int, ...], value: object) -> dict:
    """Return the step with *value* at *keys*; one past the end of a list appends to it."""
    content = step()
    node = content
    for key in keys[:-1]:
        node = node[key]
    if isinstance(node, list) and keys[-1] == len(node):
        node.append(value)
    else:
        node[keys[-1]] = value
    return content


def refusal(path: Path, error: type[InvalidInput] = InvalidInput) -> str:
    """Return what is wrong with the file at *path*: one line that begins with its name."""
    with pytest.raises(error) as caught:
        read_trace(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


# -- round trips -----------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    "name",
    [
        "alexnet:batch=2",
        "chain:ops=30",
        *(f"random:seed={seed},ops=9,places=everywhere" for seed in range(4)),
        *(f"random:seed={seed},ops=9,places=saves" for seed in range(4)),
    ],
)
def test_a_trace_comes_back_as_it_was_written(name, suffix, tmp_path):
    trace = find_trace(name)
    path = tmp_path / f"step{suffix}"
    write_trace(trace, path)
    for back in (read_trace(path), read_trace(str(path)), find_trace(str(path))):
        assert back.facts.digest == trace.facts.digest
        # The digest leaves times and notes out; they come back, too.
        assert msgspec.to_builtins(back) == msgspec.to_builtins(trace)


def test_all_spellings_of_a_trace_have_one_digest(tmp_path):
    trace = find_trace("random:seed=5,places=saves")
    digests = set()
    for suffix in SUFFIXES:
        write_trace(trace, tmp_path / f"step{suffix}")
        digests.add(read_trace(tmp_path / f"step{suffix}").facts.digest)
    assert digests == {trace.facts.digest}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_same_trace_is_written_as_the_same_bytes(suffix, tmp_path, monkeypatch):
    trace = find_trace("random:seed=5")
    for now, name in enumerate(("one", "two")):
        monkeypatch.setattr("time.time", lambda now=now: float(now))  # gzip may note the hour
        write_trace(trace, tmp_path / f"{name}{suffix}")
    assert (tmp_path / f"one{suffix}").read_bytes() == (tmp_path / f"two{suffix}").read_bytes()


def test_the_ending_says_how_a_trace_is_written(tmp_path):
    trace = find_trace("random:seed=5")
    raw = {}
    for suffix in SUFFIXES:
        write_trace(trace, tmp_path / f"step{suffix}")
        content = (tmp_path / f"step{suffix}").read_bytes()
        raw[suffix] = gzip.decompress(content) if suffix.endswith(".gz") else content
    assert raw[".yaml"].startswith(f"format: {FORMAT}\n".encode())
    assert raw[".yaml"] == raw[".yml"] == raw[".yaml.gz"] == raw[".yml.gz"]
    assert json.loads(raw[".json"])["format"] == FORMAT
    assert raw[".json"] == raw[".json.gz"]


@pytest.mark.parametrize(
    "name", ["yes", "1e3", "2026-11-22", "null", "a: b", "#", "", "ü\x85", "'"]
)
@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_names_that_yaml_takes_for_something_else_come_back_as_names(name, suffix, tmp_path):
    trace = Trace(
        name=name,
        places="everywhere",
        times="none",
        storages=(),
        operations=(),
        notes={name: name},
    )
    write_trace(trace, tmp_path / f"step{suffix}")
    back = read_trace(tmp_path / f"step{suffix}")
    assert (back.name, back.notes) == (name, {name: name})


# -- strictness ------------------------------------------------------------------------------------


def test_the_step_that_is_broken_below_is_right(tmp_path):
    path = tmp_path / "step.json"
    path.write_text(json.dumps(step()))
    assert read_trace(path).facts.op_names == ["f1", "f2", "f3", "b3"]


FAULTY_FIELDS = [
    pytest.param(("sizes",), 1, "", "unknown field `sizes`", id="unknown-field-of-the-trace"),
    pytest.param(
        ("storages", 1, "size"), 1, "storages[1]: ", "`size`", id="unknown-field-of-a-storage"
    ),
    pytest.param(
        ("operations", 2, "time"),
        1,
        "operations[2]: ",
        "`time`",
        id="unknown-field-of-an-operation",
    ),
    pytest.param(
        ("storages", 1, "nbytes"), -16, "storages[1].nbytes: ", ">= 0", id="negative-size"
    ),
    pytest.param(("storages", 1, "nbytes"), 16.5, "storages[1].nbytes: ", "float", id="float-size"),
    pytest.param(
        ("storages", 1, "nbytes"), 16.0, "storages[1].nbytes: ", "float", id="whole-float-size"
    ),
    pytest.param(("storages", 1, "nbytes"), "16", "storages[1].nbytes: ", "str", id="size-as-text"),
    pytest.param(
        ("storages", 1, "nbytes"), True, "storages[1].nbytes: ", "bool", id="size-as-bool"
    ),
    pytest.param(("storages", 1, "nbytes"), None, "storages[1].nbytes: ", "null", id="no-size"),
    pytest.param(
        ("operations", 0, "device_ns"), -1, "operations[0].device_ns: ", ">= 0", id="negative-time"
    ),
    pytest.param(
        ("operations", 0, "device_ns"), 0.5, "operations[0].device_ns: ", "float", id="float-time"
    ),
    pytest.param(
        ("storages", 1, "kind"), "weights", "storages[1].kind: ", "'weights'", id="unknown-kind"
    ),
    pytest.param(
        ("operations", 3, "reads", 1), 7, "operations[3].reads[1]: ", "int", id="number-as-a-name"
    ),
    pytest.param(
        ("storages", 1), {"name": "a", "nbytes": 16}, "storages[1]: ", "`kind`", id="missing-field"
    ),
    pytest.param(("places",), "nowhere", "places: ", "'nowhere'", id="unknown-places"),
    pytest.param(("operations",), None, "operations: ", "null", id="no-operations"),
    pytest.param(
        ("saves",),
        [{"value": "a", "packed": 1, "unpacked": -3}],
        "saves[0].unpacked: ",
        ">= 0",
        id="negative-place",
    ),
]

CONTRADICTIONS = [
    pytest.param(
        ("operations", 0, "reads"),
        ["w", "b"],
        "operations[0].reads[1]: 'f1' reads 'b', which nobody has written yet",
        id="reads-what-nobody-wrote",
    ),
    pytest.param(
        ("operations", 0, "reads"),
        ["w", "a@1"],
        "operations[0].reads[1]: 'f1' reads 'a@1', which nobody has written yet",
        id="reads-a-version-to-come",
    ),
    pytest.param(
        ("operations", 3, "reads"),
        ["b", "a"],
        "operations[3].reads[1]: 'b3' reads 'a', which has been overwritten",
        id="reads-what-is-overwritten",
    ),
    pytest.param(
        ("operations", 0, "reads"),
        ["w", "z"],
        "operations[0].reads[1]: 'f1' reads 'z', no value here",
        id="reads-what-does-not-exist",
    ),
    pytest.param(
        ("operations", 3, "writes"),
        ["g", "z"],
        "operations[3].writes[1]: 'b3' writes 'z', no value here",
        id="writes-what-does-not-exist",
    ),
    pytest.param(
        ("values", 0, "version"),
        2,
        "operations[1].writes[0]: 'f2' writes 'a@1', version 2 of its storage; "
        "the next one is version 1",
        id="writes-a-wrong-version",
    ),
    pytest.param(
        ("operations", 2, "writes"),
        ["b", "w"],
        "operations[2].writes[1]: 'f3' writes 'w', version 0 of its storage; "
        "the next one is version 1",
        id="writes-anew-what-is-there",
    ),
    pytest.param(
        ("operations", 2, "writes"),
        ["b", "b"],
        "operations[2].writes[1]: 'f3' writes 'b' twice",
        id="writes-a-value-twice",
    ),
    pytest.param(
        ("operations", 1, "writes"),
        ["a@1", "a@2"],
        "operations[1].writes[1]: ",
        id="writes-two-versions-at-once",
    ),
    pytest.param(
        ("operations", 2, "updates"), ["b"], "operations[2].updates", id="updates-no-next-version"
    ),
    pytest.param(
        ("operations", 2, "updates"), ["z"], "operations[2].updates", id="updates-no-value"
    ),
    pytest.param(
        ("storages", 2, "name"), "a", "storages[2]: two storages are named 'a'", id="two-storages"
    ),
    pytest.param(
        ("operations", 2, "name"),
        "f1",
        "operations[2]: two operations are named 'f1'",
        id="two-operations",
    ),
    pytest.param(
        ("storages", 4),
        {"name": "z", "kind": "activation", "nbytes": 1},
        "storages[4]: nothing ever writes 'z'",
        id="a-storage-that-nobody-writes",
    ),
    pytest.param(
        ("values", 1),
        {"name": "v", "storage": "b", "offset": 8, "nbytes": 9},
        "values[1]: the view 'v' ends at byte 17, beyond its storage 'b' of 16 bytes",
        id="view-beyond-its-storage",
    ),
    pytest.param(
        ("values", 1),
        {"name": "v", "storage": "b", "offset": 17},
        "values[1]: the view 'v' ends at byte 17, beyond its storage 'b' of 16 bytes",
        id="view-that-begins-beyond-its-storage",
    ),
    pytest.param(
        ("values", 1),
        {"name": "v", "storage": "z"},
        "values[1]: value 'v' is of 'z', no storage here",
        id="view-of-no-storage",
    ),
    pytest.param(
        ("values", 1),
        {"name": "w", "storage": "b"},
        "values[1]: the name 'w' is taken already",
        id="value-with-the-name-of-a-storage",
    ),
    pytest.param(
        ("releases",),
        [{"storage": "g", "place": 4}, {"storage": "a", "place": 3}],
        "releases[1]: 'a' is released at place 3, but 'b3' (operation 3) still uses it",
        id="use-after-release",
    ),
    pytest.param(
        ("releases",),
        [{"storage": "z", "place": 3}],
        "releases[0]: releases 'z', no storage here",
        id="release-of-no-storage",
    ),
    pytest.param(
        ("releases",),
        [{"storage": "a", "place": 4}, {"storage": "a", "place": 4}],
        "releases[1]: 'a' is released already",
        id="released-twice",
    ),
    pytest.param(
        ("releases",),
        [{"storage": "g", "place": 3}],
        "releases[0]: 'g' is released at place 3; it lives from 4 and the step ends at 4",
        id="released-before-it-is-written",
    ),
    pytest.param(
        ("releases",),
        [{"storage": "a", "place": 5}],
        "releases[0]: 'a' is released at place 5; it lives from 1 and the step ends at 4",
        id="released-after-the-end",
    ),
    pytest.param(
        ("saves",), [{"value": "a", "packed": 1, "unpacked": 3}], "saves", id="saves-in-layer-trace"
    ),
    pytest.param(
        ("releases",),
        [{"storage": "w", "place": 1}],
        "only at the start: w (8 bytes); only at the end: nothing",
        id="not-closed-something-is-gone",
    ),
    pytest.param(
        ("storages", 3, "becomes"),
        "h",
        "only at the start: nothing; only at the end: h (16 bytes)",
        id="not-closed-something-is-left",
    ),
]


@pytest.mark.parametrize("suffix", [".json", ".yaml"])  # JSON is YAML, too
@pytest.mark.parametrize(("keys", "value", "place", "phrase"), FAULTY_FIELDS)
def test_a_field_that_is_no_field_of_a_trace_is_told_with_its_path(
    keys, value, place, phrase, suffix, tmp_path
):
    path = tmp_path / f"step{suffix}"
    path.write_text(json.dumps(altered(keys, value)))
    message = refusal(path)
    assert message.startswith(place)
    assert phrase in message


@pytest.mark.parametrize("suffix", [".json", ".yaml"])
@pytest.mark.parametrize(("keys", "value", "phrase"), CONTRADICTIONS)
def test_a_trace_that_contradicts_itself_is_told_where(keys, value, phrase, suffix, tmp_path):
    path = tmp_path / f"step{suffix}"
    path.write_text(json.dumps(altered(keys, value)))
    message = refusal(path, InvalidTrace)
    assert message.startswith("trace 'tiny', ")
    assert phrase in message


def test_a_step_that_is_not_closed_names_the_bytes_on_both_sides(tmp_path):
    content = altered(("releases",), [{"storage": "w", "place": 1}])
    content["storages"][3]["becomes"] = "w"  # twice as large as what was there
    path = tmp_path / "step.json"
    path.write_text(json.dumps(content))
    assert refusal(path, InvalidTrace) == (
        "trace 'tiny', storages: the step is not closed: what is alive at its end must have been "
        "alive at its start; only at the start: w (8 bytes); only at the end: w (16 bytes)"
    )


def test_a_long_difference_is_cut_short(tmp_path):
    content = step()
    for i in range(7):
        extra = {"name": f"p{i}", "kind": "input", "nbytes": i, "alive_at_start": True}
        content["storages"].append(extra)
    content["releases"] = [{"storage": f"p{i}", "place": 0} for i in range(7)]
    path = tmp_path / "step.json"
    path.write_text(json.dumps(content))
    assert "p3 (3 bytes), p4 (4 bytes) and 2 more; only at the end" in refusal(path, InvalidTrace)


# -- files that cannot be read ---------------------------------------------------------------------

GOOD = json.dumps(step()).encode()
ZIPPED = gzip.compress(GOOD, mtime=0)


@pytest.mark.parametrize("cut", [1, 5, 10, 20, len(ZIPPED) - 9, len(ZIPPED) - 1])
def test_a_truncated_gzip_is_refused(cut, tmp_path):
    path = tmp_path / "step.json.gz"
    path.write_bytes(ZIPPED[:cut])
    assert refusal(path).startswith("cannot be read as a trace file: ")


@pytest.mark.parametrize("cut", [1, 10, 100, len(GOOD) // 2, len(GOOD) - 1])
def test_truncated_json_is_refused(cut, tmp_path):
    path = tmp_path / "step.json"
    path.write_bytes(GOOD[:cut])
    assert refusal(path).startswith("cannot be read as a trace file: ")


@pytest.mark.parametrize(
    ("name", "raw", "phrase"),
    [
        pytest.param("a.json.gz", GOOD, "gzip", id="json-that-is-not-zipped"),
        pytest.param("a.json", ZIPPED, "cannot be read", id="zipped-without-saying-so"),
        pytest.param(
            "a.json.gz", ZIPPED[:30] + b"\xff" * 9 + ZIPPED[39:], "decompress", id="damaged-gzip"
        ),
        pytest.param("a.yaml", b"storages: [\nname", "line ", id="broken-yaml"),
        pytest.param("a.yaml", b"a: b: c", "line 1", id="yaml-with-two-colons"),
        pytest.param("a.yaml", b"format: x\n---\nformat: y\n", "document", id="two-yaml-documents"),
        pytest.param("a.yaml", b"!!python/object:os.system x\n", "python", id="yaml-with-code"),
        pytest.param("a.yaml", b"? [a]\n: b\n", "unhashable", id="yaml-with-a-list-as-key"),
        pytest.param("a.json", b"", "", id="empty-json"),
        pytest.param("a.yaml", b"", "format: superneurons-trace/1", id="empty-yaml"),
        pytest.param("a.json.gz", b"", "", id="empty-gzip"),
        pytest.param("a.json.gz", gzip.compress(b""), "", id="gzip-of-nothing"),
        pytest.param("a.json", b"[1, 2]", "format: superneurons-trace/1", id="json-list"),
        pytest.param("a.yaml", b"just words", "format: superneurons-trace/1", id="yaml-text"),
        pytest.param("a.json", b'{"name": "\xff\xfe"}', "byte 0xff", id="json-that-is-not-utf8"),
        pytest.param("a.yaml", b"name: \xff\xfe\n", "#x00ff", id="yaml-that-is-not-utf8"),
        pytest.param("a.yaml", b"name: \x00\n", "#x0000", id="yaml-with-control-characters"),
        pytest.param("a.json", b"{}", "'superneurons-trace/1'", id="no-format"),
        pytest.param(
            "a.json",
            b'{"format": "superneurons-schedule/1"}',
            "'superneurons-schedule/1', not 'superneurons-trace/1'",
            id="another-format",
        ),
        pytest.param(
            "a.json", b'{"format": ["superneurons-trace/1"]}', "not 'superneurons", id="odd-format"
        ),
        pytest.param(
            "a.yaml",
            b"format: superneurons-trace/2\n",
            "version 2; this superneurons reads version 1",
            id="another-version",
        ),
        pytest.param(
            "a.json", b'{"format":' + b"[" * 100_000, "cannot be read", id="json-nested-too-deep"
        ),
        pytest.param("a.yaml", b"notes: {made: 2026-13-45}\n", "cannot be read", id="yaml-no-date"),
    ],
)
def test_what_is_no_trace_file_is_refused_in_one_sentence(name, raw, phrase, tmp_path):
    path = tmp_path / name
    path.write_bytes(raw)
    assert phrase in refusal(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_missing_file_is_refused(suffix, tmp_path):
    expected = "cannot be read as a trace file: No such file or directory"
    assert refusal(tmp_path / f"step{suffix}") == expected


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_directory_is_refused(suffix, tmp_path):
    path = tmp_path / f"step{suffix}"
    path.mkdir()
    assert refusal(path) == "cannot be read as a trace file: Is a directory"


# -- writing ---------------------------------------------------------------------------------------


@contextmanager
def full_disk(nbytes: int):
    """Let no file grow beyond *nbytes*: writes fail as they do when the disk is full."""
    resource = pytest.importorskip("resource")  # Windows has none
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def contents(folder: Path) -> dict[str, bytes]:
    return {entry.name: entry.read_bytes() for entry in folder.iterdir() if entry.is_file()}


@pytest.mark.parametrize("before", [None, b"what was there before"], ids=["new", "existing"])
def test_a_write_onto_a_full_disk_leaves_everything_as_it_was(before, tmp_path):
    path = tmp_path / "step.json"
    if before is not None:
        path.write_bytes(before)
    kept = contents(tmp_path)
    with full_disk(100), pytest.raises(InvalidInput) as caught:
        write_trace(find_trace("random:seed=5"), path)
    assert str(caught.value) == f"{path}: cannot be written: File too large"
    assert contents(tmp_path) == kept


def test_a_write_into_a_missing_folder_is_refused(tmp_path):
    path = tmp_path / "nowhere" / "step.json"
    with pytest.raises(InvalidInput) as caught:
        write_trace(find_trace("random:seed=5"), path)
    assert str(caught.value) == f"{path}: cannot be written: No such file or directory"
    assert list(tmp_path.iterdir()) == []


def test_a_write_onto_a_folder_is_refused(tmp_path):
    path = tmp_path / "step.json"
    path.mkdir()
    with pytest.raises(InvalidInput) as caught:
        write_trace(find_trace("random:seed=5"), path)
    assert str(caught.value) == f"{path}: cannot be written: Is a directory"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_replaces_the_whole_file(tmp_path):
    path = tmp_path / "step.json"
    path.write_bytes(b"x" * 10**6)
    write_trace(find_trace("random:seed=5"), path)
    assert read_trace(path).name == "random:seed=5,ops=12,places=everywhere"
    assert [entry.name for entry in tmp_path.iterdir()] == ["step.json"]


# -- the format ------------------------------------------------------------------------------------

FIELDS = {
    "Storage": {"name", "kind", "nbytes", "alive_at_start", "becomes"},
    "Value": {"name", "storage", "version", "offset", "nbytes"},
    "Algorithm": {"name", "device_ns", "workspace_nbytes", "flops", "moved_nbytes"},
    "Operation": {
        "name",
        "kind",
        "phase",
        "reads",
        "writes",
        "updates",
        "device_ns",
        "host_ns",
        "launches",
        "allocations",
        "workspace_nbytes",
        "transient_nbytes",
        "flops",
        "precision",
        "moved_nbytes",
        "algorithms",
        "recompute",
        "waits",
        "module",
    },
    "Release": {"storage", "place"},
    "Save": {"value", "packed", "unpacked", "freed", "node"},
    "Trace": {
        "name",
        "places",
        "times",
        "machine",
        "storages",
        "operations",
        "values",
        "releases",
        "saves",
        "notes",
    },
}


def test_the_fields_of_the_trace_format_are_frozen():
    # Files are out there: whoever changes a name changes the format's version with it; a field
    # with a default may be added, for old files then still say what they said.
    found = {
        name: set(struct.__struct_fields__)
        for name, struct in inspect.getmembers(model, inspect.isclass)
        if issubclass(struct, msgspec.Struct) and struct is not msgspec.Struct
    }
    assert found == FIELDS
    assert model.FORMAT == FORMAT


def test_every_struct_of_the_format_refuses_unknown_fields():
    for name in FIELDS:
        assert getattr(model, name).__struct_config__.forbid_unknown_fields, name
