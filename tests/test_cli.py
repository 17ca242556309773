"""The command line: what it prints, what it writes, and one sentence where it cannot."""

import json
import subprocess
import sys
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import pytest
from commandline import refuse, run, succeed

from superneurons import __version__
from superneurons.policies import policy_names

SMALL = ("alexnet:batch=20", "--machine", "k40c")
ONE = ("simulate", *SMALL, "--policy", "liveness")


def process(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, check=False
    )


def reports(*arguments: str) -> list[dict]:
    return json.loads(succeed("simulate", *arguments, "--json"))


# -- simulate: the table ---------------------------------------------------------------------------


def test_simulate_prints_a_row_for_each_policy():
    lines = succeed("simulate", "alexnet:batch=200", "--machine", "k40c").splitlines()
    assert lines[0].split() == (
        [
            "alexnet:batch=200",
            "on",
            "k40c,",
            "memory",
            "12,288.000",
            "MiB,",
            "46",
            "operations,",
            "times:",
            "roofline",
        ]
    )
    rows = {line.split()[0]: line.split()[1:] for line in lines[2:] if line.strip()}
    assert list(rows["policy"]) == (
        ["step", "peak", "device", "peak", "reserved", "fits", "step", "time", "stall"]
    )
    # The step peaks of the paper's Fig. 10.
    peaks = {
        "baseline": "2,189.437",
        "liveness": "1,489.355",
        "liveness+offload": "1,132.056",
        "superneurons": "886.230",
    }
    for policy, peak in peaks.items():
        assert rows[policy][:2] == [peak, "MiB"]
        assert rows[policy][6] == "yes"


def test_policies_are_given_in_one_list_or_in_several():
    one = reports(*SMALL, "--policy", "baseline,offload:lookahead=2,tier=host,liveness")
    several = reports(
        *SMALL, "--policy", "baseline", "--policy", "offload:lookahead=2,tier=host,liveness"
    )
    assert [r["policy"] for r in one] == ["baseline", "offload:lookahead=2", "liveness"]
    assert one == several


def test_the_table_says_who_does_not_fit_where_and_by_how_much():
    budget = 820 * 2**20
    out = succeed("simulate", *SMALL, "--policy", "baseline,superneurons", "--budget", "820MiB")
    assert ", budget 820.000 MiB, " in out
    assert out.split("baseline")[1].split()[6] == "no"
    assert out.split("superneurons")[1].split()[6] == "yes"
    (baseline, superneurons) = reports(
        *SMALL, "--policy", "baseline,superneurons", "--budget", "820MiB"
    )
    short = baseline["device_peak_bytes"] - budget
    assert short > 0
    assert f"baseline: short of 124.601 MiB ({short} bytes) at worst, at conv1.backward; " in out
    assert "superneurons: short" not in out
    assert not baseline["fits"]
    assert (baseline["short_bytes"], baseline["short_op"]) == (short, "conv1.backward")
    assert superneurons["fits"]
    assert (superneurons["short_bytes"], superneurons["short_op"]) == (0, None)


@pytest.mark.parametrize("name", ["resnet[b32]", "a[/b]", ":smile:"])
def test_the_table_shows_a_name_as_it_is(name, tmp_path):
    path = tmp_path / "step.json"
    path.write_text(json.dumps(empty_step(name)))
    out = succeed("simulate", str(path), "--machine", "k40c", "--policy", "baseline")
    assert out.startswith(f"{name} on k40c, ")


def empty_step(name: str) -> dict:
    return {
        "format": "superneurons-trace/1",
        "name": name,
        "places": "everywhere",
        "times": "measured",
        "storages": [{"name": "w", "kind": "parameter", "nbytes": 8, "alive_at_start": True}],
        "operations": [],
    }


def test_a_step_without_operations_costs_nothing(tmp_path):
    path = tmp_path / "step.json"
    path.write_text(json.dumps(empty_step("nothing")))
    (report,) = reports(str(path), "--machine", "k40c", "--policy", "liveness")
    assert (report["step_time_ns"], report["device_peak_bytes"], report["ops"]) == (0, 8, 0)
    assert (report["step_peak_op"], report["step_peak_bytes"]) == (None, 0)


def test_a_budget_below_what_is_always_there_is_refused_even_without_operations(tmp_path):
    path = tmp_path / "step.json"
    path.write_text(json.dumps(empty_step("nothing")))
    sentence = refuse("simulate", str(path), "--machine", "k40c", "--budget", "7B")
    assert sentence.endswith(
        "no policy fits 'nothing' into 7 B: what is there at the start needs 8 B, 1 bytes more"
    )


# -- simulate: JSON --------------------------------------------------------------------------------

KEYS = {
    "trace": str,
    "policy": str,
    "machine": str,
    "fits": bool,
    "step_peak_bytes": int,
    "step_peak_op": str,
    "step_peak_live_tensors": int,
    "strict_peak_bytes": int,
    "device_peak_bytes": int,
    "reserved_peak_bytes": int,
    "step_time_ns": int,
    "stall_ns": int,
    "copied_out_bytes": int,
    "copied_in_bytes": int,
    "recomputed_ops": int,
    "recomputed_ns": int,
    "ops": int,
}


def test_json_has_what_scripts_read_in_whole_numbers():
    found = reports(*SMALL, "--policy", "baseline,liveness+offload+recompute")
    for report in found:
        assert {key: type(report[key]) for key in KEYS} == KEYS
        assert report["budget_bytes"] is None
    assert [report["policy"] for report in found] == ["baseline", "liveness+offload+recompute"]
    for report in found:
        assert (report["trace"], report["machine"], report["ops"]) == (SMALL[0], "k40c", 46)
        assert report["fits"]
        assert report["step_peak_bytes"] == max(report["step_bytes"])
        assert report["step_peak_op"] == report["op_names"][
            report["step_bytes"].index(report["step_peak_bytes"])
        ]  # fmt: skip
        assert report["step_peak_bytes"] <= report["strict_peak_bytes"]
        assert report["strict_peak_bytes"] < report["device_peak_bytes"]
        assert report["reserved_peak_bytes"] == report["device_peak_bytes"]  # exact bytes
        assert report["stall_ns"] == sum(stall["ns"] for stall in report["stalls"])
    baseline, everything = found
    assert baseline["step_peak_live_tensors"] == 36
    for key in ("copied_out_bytes", "copied_in_bytes", "recomputed_ops", "recomputed_ns"):
        assert baseline[key] == 0
        assert everything[key] > 0


def test_json_has_the_budget_only_if_one_was_given():
    (report,) = reports(*SMALL, "--policy", "liveness", "--budget", "1GiB")
    assert report["budget_bytes"] == report["limit_bytes"] == 2**30
    (report,) = reports(*SMALL, "--policy", "liveness")
    assert (report["budget_bytes"], report["limit_bytes"]) == (None, 12 * 2**30)


def test_machine_figures_can_be_overridden():
    fast, slow = (
        reports(
            "alexnet:batch=20", "--machine", f"k40c:host_to_device={rate}", "--policy", "offload"
        )
        for rate in ("8GB/s", "8MB/s")
    )
    assert fast[0]["stall_ns"] < slow[0]["stall_ns"]
    assert slow[0]["machine"] == "k40c:host_to_device=8MB/s"


# -- simulate: pictures and timelines --------------------------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "magic"), [("png", b"\x89PNG\r\n\x1a\n"), ("svg", b"<?xml"), ("pdf", b"%PDF")]
)
def test_plot_writes_a_picture(suffix, magic, tmp_path):
    path = tmp_path / f"memory.{suffix}"
    out = succeed("simulate", *SMALL, "--policy", "baseline,liveness", "--plot", str(path))
    assert path.read_bytes().startswith(magic)
    assert len(path.read_bytes()) > 1000
    assert "liveness" in out


def timeline(path: Path, *arguments: str) -> dict[str, list[dict]]:
    """Return the events of a timeline by process."""
    succeed("simulate", *arguments, "--timeline", str(path))
    content = json.loads(path.read_bytes())
    processes: dict[int, list[dict]] = defaultdict(list)
    for event in content["traceEvents"]:
        processes[event["pid"]].append(event)
    named = {}
    for events in processes.values():
        (name,) = (e["args"]["name"] for e in events if e["name"] == "process_name")
        named[name] = events
    return named


def rows(events: list[dict]) -> dict[str, list[tuple[int, int, str]]]:
    """Return the spans (start, end, name) by lane, in order of time and in nanoseconds."""
    named = [(e["tid"], e["args"]["name"]) for e in events if e["name"] == "thread_name"]
    lanes = dict(named)
    assert len(lanes) == len(named) == len(set(lanes.values()))
    spans: dict[str, list[tuple[int, int, str]]] = {lane: [] for lane in lanes.values()}
    for e in events:
        if e["ph"] == "X":
            # microseconds with three decimals: whole nanoseconds but for the last bit of a float
            start, ns = round(e["ts"] * 1000), round(e["dur"] * 1000)
            spans[lanes[e["tid"]]].append((start, start + ns, e["name"]))
    return {lane: sorted(found) for lane, found in spans.items()}


POLICIES = ["baseline", "liveness+offload:release=immediate", "liveness+offload+recompute"]


@pytest.fixture(scope="module")
def timelines(tmp_path_factory) -> dict[str, tuple[dict, list[dict]]]:
    """Reports and timeline events by policy."""
    path = tmp_path_factory.mktemp("timeline") / "step.json"
    found = timeline(path, *SMALL, "--policy", ",".join(POLICIES))
    assert list(found) == POLICIES
    figures = {
        report["policy"]: report for report in reports(*SMALL, "--policy", ",".join(POLICIES))
    }
    return {policy: (figures[policy], found[policy]) for policy in POLICIES}


@pytest.mark.parametrize("policy", POLICIES)
def test_a_timeline_has_a_row_for_each_lane_on_which_nothing_overlaps(policy, timelines):
    report, events = timelines[policy]
    lanes = rows(events)
    copying = {"copy out to host", "copy in from host"} if "offload" in policy else set()
    assert lanes.keys() == {"launch", "compute"} | copying
    for lane, spans in lanes.items():
        assert spans, lane
        for (_, end, name), (start, _, following) in pairwise(spans):
            assert end <= start, f"{lane}: {name} and {following}"
    assert max(end for spans in lanes.values() for _, end, _ in spans) == report["step_time_ns"]


@pytest.mark.parametrize("policy", POLICIES)
def test_the_compute_row_adds_up_to_the_report(policy, timelines):
    report, events = timelines[policy]
    compute = rows(events)["compute"]
    waits = [span for span in compute if span[2].startswith("wait for ")]
    again = [span for span in compute if span[2].startswith("recompute ")]
    ran = [name for _, _, name in compute if name in report["op_names"]]
    assert ran == report["op_names"]
    assert len(compute) == len(ran) + len(waits) + len(again)
    assert sum(end - start for start, end, _ in waits) == report["stall_ns"]
    assert len(again) == report["recomputed_ops"]
    assert sum(end - start for start, end, _ in again) == report["recomputed_ns"]
    busy = sum(end - start for start, end, _ in compute) - report["stall_ns"]
    assert busy == report["compute_ns"]


@pytest.mark.parametrize("policy", POLICIES)
def test_the_memory_counter_of_a_timeline_reaches_the_device_peak(policy, timelines):
    report, events = timelines[policy]
    samples = [e for e in events if e["ph"] == "C"]
    assert {e["name"] for e in samples} == {"device memory"}
    assert max(sum(e["args"].values()) for e in samples) == report["device_peak_bytes"]
    assert max(e["args"]["scheduled bytes"] for e in samples) == report["strict_peak_bytes"]
    times = [e["ts"] for e in samples]
    assert times == sorted(times)
    assert samples[-1]["args"]["scheduled bytes"] == 0  # the step leaves nothing behind


def test_the_memory_counter_has_workspaces_while_they_last_and_frees_after_their_fence(tmp_path):
    """One tensor of 80 bytes goes out and comes back, at 10 us and 10 ns either way."""
    names = {"f1": ("", "a"), "f2": ("a", "b"), "f3": ("b", "c"), "b1": ("a c", "g")}
    step = empty_step("step") | {
        "storages": [
            {"name": "a", "kind": "activation", "nbytes": 80},
            *({"name": name, "kind": "activation", "nbytes": 1} for name in "bcg"),
        ],
        "operations": [
            {
                "name": name,
                "kind": "conv" if name == "f1" else "norm",
                "phase": "backward" if name == "b1" else "forward",
                "reads": reads.split(),
                "writes": [written],
                "device_ns": 100,
                "host_ns": 0,
                "workspace_nbytes": 500 if name == "f1" else 0,
            }
            for name, (reads, written) in names.items()
        ],
    }
    path = tmp_path / "step.json"
    path.write_text(json.dumps(step))
    policy = "liveness+offload:release=immediate,lookahead=0"
    found = timeline(tmp_path / "t.json", str(path), "--machine", "k40c", "--policy", policy)
    (events,) = found.values()
    samples = [(round(e["ts"] * 1000), sum(e["args"].values())) for e in events if e["ph"] == "C"]
    assert samples == [
        (0, 0),
        (0, 580),  # f1: its output and its workspace
        (100, 80),
        (100, 81),  # f2: after it a is copied, and freed when the copy has arrived at 10210
        (10_210, 1),
        (10_210, 2),  # f3: after it b is dead
        (10_310, 1),
        (10_310, 81),  # a comes back, for b1 that waits until 20320
        (20_320, 82),
        (20_420, 2),  # a, c and g die together
        (20_420, 1),
        (20_420, 0),
    ]


# -- schedules -------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path) -> Path:
    """A schedule file with every kind of instruction but a second algorithm."""
    path = tmp_path / "schedule.json"
    policy = "liveness+offload+recompute"
    succeed("simulate", *SMALL, "--policy", policy, "--schedule", str(path))
    verbs = {step[0] for step in json.loads(path.read_bytes())["instructions"]}
    assert verbs == {"run", "rerun", "copy", "free", "fetch", "discard"}
    return path


def test_a_saved_schedule_passes_the_check(saved):
    (report,) = reports(*SMALL, "--policy", "liveness+offload+recompute")
    out = succeed("check", SMALL[0], str(saved))
    assert out.startswith(f"{saved}: legal. {report['instructions']} instructions of liveness+")
    assert f"step peak {report['step_peak_bytes'] / 2**20:,.3f} MiB" in out


@pytest.mark.parametrize("suffix", ["json", "json.gz", "yaml"])
def test_a_schedule_is_saved_as_its_ending_says(suffix, tmp_path):
    path = tmp_path / f"schedule.{suffix}"
    succeed(*ONE, "--schedule", str(path))
    assert ": legal. " in succeed("check", SMALL[0], str(path))


def test_a_schedule_that_does_not_fit_says_so_when_it_is_checked(tmp_path):
    path = tmp_path / "schedule.json"
    succeed(*ONE, "--budget", "820MiB", "--schedule", str(path))
    short = json.loads(path.read_bytes())["short_nbytes"]
    assert short > 0
    out = succeed("check", SMALL[0], str(path))
    assert f"It says itself that it is {short} bytes short." in out


def test_a_schedule_is_refused_for_another_trace(saved):
    sentence = refuse("check", "alexnet:batch=21", str(saved))
    assert sentence.startswith(f"{saved}: was made for trace 'alexnet:batch=20' (digest ")
    assert "'alexnet:batch=21' has digest " in sentence


def drop(verb: str):
    """Return a change that drops the first instruction of a kind."""

    def change(content: dict) -> None:
        steps = content["instructions"]
        steps.remove(next(step for step in steps if step[0] == verb))

    return change


def set_to(key: str, value: object):
    """Return a change of one entry of the file."""

    def change(content: dict) -> None:
        content[key] = value

    return change


def insert(position: int, *spelled: object):
    """Return a change that inserts an instruction."""

    def change(content: dict) -> None:
        content["instructions"].insert(position, list(spelled))

    return change


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        pytest.param(drop("run"), "(rule: order)", id="an-operation-is-dropped"),
        pytest.param(drop("rerun"), "(rule: inputs)", id="a-recomputation-is-dropped"),
        pytest.param(drop("copy"), "(rule: tier)", id="a-copy-is-dropped"),
        pytest.param(drop("fetch"), "(rule: ", id="a-fetch-is-dropped"),
        pytest.param(drop("free"), "(rule: ", id="a-free-is-dropped"),
        pytest.param(drop("discard"), "(rule: end)", id="a-discard-is-dropped"),
        pytest.param(insert(0, "free", "conv1.out"), "(rule: resident)", id="a-free-too-early"),
        pytest.param(
            insert(1, "free", "conv1.weights"), "(rule: managed)", id="a-parameter-is-freed"
        ),
        pytest.param(insert(1, "run", "conv1"), "(rule: order)", id="an-operation-runs-twice"),
        pytest.param(insert(1, "copy", "conv1.out", "moon"), "(rule: tier)", id="no-such-tier"),
        pytest.param(insert(0, "rerun", "conv1"), "(rule: rerun)", id="rerun-before-run"),
        pytest.param(set_to("limit_nbytes", 1), "(rule: limit)", id="a-smaller-limit"),
        pytest.param(set_to("short_nbytes", 1), "(rule: limit)", id="a-false-announcement"),
        pytest.param(set_to("tiers", {"host": 1}), "(rule: tier)", id="a-smaller-tier"),
        pytest.param(set_to("instructions", []), "(rule: order)", id="nothing-is-left"),
    ],
)
def test_a_tampered_schedule_is_refused_with_the_rule_that_it_breaks(change, rule, saved):
    content = json.loads(saved.read_bytes())
    change(content)
    saved.write_text(json.dumps(content))
    assert rule in refuse("check", SMALL[0], str(saved))


@pytest.mark.parametrize(
    ("change", "phrase"),
    [
        pytest.param(
            insert(3, "run", "conv9"),
            "instructions[3]: the trace has no operation ",
            id="unknown-operation",
        ),
        pytest.param(
            insert(3, "free", "conv9"),
            "instructions[3]: the trace has no storage ",
            id="unknown-storage",
        ),
        pytest.param(
            insert(3, "burn", "conv1"),
            "instructions[3]: ['burn', 'conv1'] is no instr",
            id="unknown-instruction",
        ),
        pytest.param(insert(3, "copy", "conv1.out"), "instructions[3]: ", id="copy-without-tier"),
        pytest.param(insert(3), "instructions[3]: [] is no instruction", id="empty-instruction"),
        pytest.param(insert(3, "run", None), "instructions[3]", id="no-name"),
        pytest.param(set_to("limit_nbytes", 1.5), "limit_nbytes: ", id="float"),
        pytest.param(set_to("owner", "me"), "`owner`", id="unknown-field"),
        pytest.param(
            set_to("format", "superneurons-schedule/2"), "version 2", id="another-version"
        ),
        pytest.param(set_to("short_op", "conv9"), "conv9", id="short-at-an-unknown-operation"),
    ],
)
def test_a_schedule_file_that_cannot_be_read_is_refused_with_the_place(change, phrase, saved):
    content = json.loads(saved.read_bytes())
    change(content)
    saved.write_text(json.dumps(content))
    sentence = refuse("check", SMALL[0], str(saved))
    assert sentence.startswith(f"{saved}: ")
    assert phrase in sentence


def test_a_missing_schedule_file_is_refused(tmp_path):
    path = tmp_path / "nowhere.json"
    assert refuse("check", SMALL[0], str(path)) == (
        f"{path}: cannot be read as a schedule file: No such file or directory"
    )


def test_only_one_policy_at_a_time_is_saved(tmp_path):
    path = tmp_path / "schedule.json"
    policies = ("--policy", "baseline,liveness")
    assert refuse("simulate", *SMALL, *policies, "--schedule", str(path)) == (
        "--schedule saves the decisions of one policy; 2 are given"
    )
    assert not path.exists()


# -- lists and manuals -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "names"),
    [
        ("traces", ["alexnet", "chain", "random"]),
        ("machines", ["h200", "k40c", "k40c-cluster", "titan-xp"]),
        ("policies", ["baseline", "cache", "liveness", "offload", "recompute", "superneurons"]),
    ],
)
def test_what_exists_is_listed_with_a_sentence_each(command, names):
    lines = succeed(command).splitlines()
    listed = {line.split(maxsplit=1)[0]: line.split(maxsplit=1)[1] for line in lines}
    assert set(names) <= set(listed)
    assert len(listed) == len(lines)
    assert all(len(sentence) > 20 for sentence in listed.values())


@pytest.mark.parametrize(
    ("command", "name", "first", "word"),
    [
        ("traces", "alexnet", "alexnet:batch=200", "62,378,344 parameters"),
        ("traces", "random", "random:seed=0,ops=12,places=everywhere", "for tests"),
        ("policies", "baseline", "baseline", "nothing is freed"),
        ("policies", "superneurons", "superneurons:strategy=cost,tier=host", "Fig. 10c"),
        ("machines", "k40c", "k40c: NVIDIA Tesla K40c, the card of the paper", "paper 3.3"),
    ],
)
def test_a_name_is_explained(command, name, first, word):
    out = succeed(command, name)
    assert out.splitlines()[0].startswith(first)
    assert word in out


def test_a_machine_is_shown_with_each_figure_and_its_source():
    out = succeed("machines", "k40c:host_to_device=12GB/s")
    assert "host_to_device = 12GB/s\n    given on the command line\n" in out
    assert "device_memory = 12GiB\n    vendor: " in out


def test_the_version_is_told():
    assert succeed("--version") == f"superneurons, version {__version__}\n"


@pytest.mark.parametrize("arguments", [(), ("-h",), ("--help",)], ids=["nothing", "-h", "--help"])
def test_help_names_the_commands(arguments):
    result = run(*arguments)
    text = result.stdout + result.stderr
    for command in ("simulate", "check", "traces", "policies", "machines"):
        assert f"  {command} " in text


# -- bad input -------------------------------------------------------------------------------------

# Plugins may be installed where the tests run: whatever exists is listed.
NO_POLICY = f"no policy 'offlaod'; there are: {', '.join(policy_names())}"
BAD_INPUT = [
    pytest.param(("policies", "offlaod"), NO_POLICY, id="manual-of-an-unknown-policy"),
    pytest.param(
        ("traces", "alexnets"),
        "no trace 'alexnets'; there are: alexnet, chain, inceptionv4, random, ",
        id="manual-of-an-unknown-trace",
    ),
    pytest.param(
        ("machines", "k40"),
        "no machine 'k40'; there are: h200, k40c, k40c-cluster, titan-xp",
        id="figures-of-an-unknown-machine",
    ),
    pytest.param(("simulate", *SMALL, "--policy", "offlaod"), NO_POLICY, id="unknown-policy"),
    pytest.param(
        ("simulate", *SMALL, "--policy", "liveness+offlaod"),
        NO_POLICY,
        id="unknown-policy-in-a-stack",
    ),
    pytest.param(("simulate", *SMALL, "--policy", ""), "no policy ''; there are: ", id="no-policy"),
    pytest.param(
        ("simulate", "alexnets", "--machine", "k40c"),
        "no trace 'alexnets'; there are: alexnet, chain, inceptionv4, random, ",
        id="unknown-trace",
    ),
    pytest.param(
        ("simulate", "alexnet", "--machine", "k40"),
        "no machine 'k40'; there are: h200, k40c, k40c-cluster, titan-xp, or give a .yaml file",
        id="unknown-machine",
    ),
    pytest.param(
        ("simulate", *SMALL, "--policy", "liveness:depth=3"),
        "policy 'liveness' has no parameter 'depth'; it has: none",
        id="parameter-of-a-policy-without",
    ),
    pytest.param(
        ("simulate", *SMALL, "--policy", "offload:depth=3"),
        "policy 'offload' has no parameter 'depth'; it has: kinds, lookahead, tier, ",
        id="unknown-parameter",
    ),
    pytest.param(
        ("simulate", *SMALL, "--policy", "offload:lookahead=soon"),
        "policy 'offload', parameter 'lookahead': 'soon' cannot be used: Expected `int`",
        id="wrong-value",
    ),
    pytest.param(
        ("simulate", *SMALL, "--policy", "offload:lookahead=-1"),
        "offload: a lookahead of -1 is negative",
        id="negative-value",
    ),
    pytest.param(
        ("simulate", *SMALL, "--policy", "offload:release=never"),
        "offload: release is 'never'; it is immediate, ",
        id="unknown-release",
    ),
    pytest.param(
        ("simulate", *SMALL, "--policy", "offload:in_flight=much"),
        "parameter 'in_flight': 'much' is not a number of bytes",
        id="wrong-bytes",
    ),
    pytest.param(
        ("simulate", *SMALL, "--policy", "recompute:strategy=slow"),
        "parameter 'strategy': 'slow' cannot be used; it is one of: speed, memory, cost",
        id="unknown-strategy",
    ),
    pytest.param(
        ("simulate", *SMALL, "--policy", "cache:tier=moon"),
        "cache: machine 'k40c' has no tier 'moon'; it has: host",
        id="unknown-tier",
    ),
    pytest.param(
        ("simulate", *SMALL, "--policy", "offload:lookahead"),
        "'lookahead' in 'offload:lookahead' is not of the form key=value",
        id="no-value",
    ),
    pytest.param(
        ("simulate", "alexnet:batch=0", "--machine", "k40c"),
        "alexnet: a batch of 0 cannot be trained",
        id="empty-batch",
    ),
    pytest.param(
        ("simulate", "alexnet:batch=some", "--machine", "k40c"),
        "trace 'alexnet', parameter 'batch': 'some' cannot be used",
        id="wrong-batch",
    ),
    pytest.param(
        ("simulate", "chain:ops=2", "--machine", "k40c"),
        "chain: 2 operations are fewer than the 3 of one layer",
        id="too-short-a-chain",
    ),
    pytest.param(
        ("simulate", "random:places=here", "--machine", "k40c"),
        "'here' cannot be used; it is one of: everywhere, saves",
        id="unknown-places",
    ),
    pytest.param(
        ("simulate", "random:ops=-4", "--machine", "k40c"), "-4", id="negative-operations"
    ),
    pytest.param(
        ("simulate", "alexnet", "--machine", "k40c:warp=9"),
        "figure 'warp' means nothing here; there are: ",
        id="unknown-figure",
    ),
    pytest.param(
        ("simulate", "alexnet", "--machine", "k40c:host_latency=fast"),
        "figure 'host_latency': 'fast' is not a number of ns",
        id="wrong-figure",
    ),
    pytest.param(
        ("simulate", *SMALL[:2], "k40c:allocator=buddy"),
        "no allocator 'buddy'; there are: caching, caching-expandable, cudamalloc, exact, pool",
        id="unknown-allocator",
    ),
    pytest.param(
        (*ONE, "--budget", "plenty"),
        "'plenty' is not a number of bytes; write it like 6GiB",
        id="nonsense-budget",
    ),
    pytest.param(
        (*ONE, "--budget", "-1GiB"),
        "'-1GiB' is not a number of bytes; write it like 6GiB",
        id="negative-budget",
    ),
    pytest.param(
        (*ONE, "--budget", "1.5B"), "'1.5B' is not a whole number of bytes", id="half-a-byte"
    ),
    pytest.param(
        (*ONE, "--budget", "13GiB"),
        "a budget of 13,312.000 MiB is more than 'k40c' has, 12,288.000 MiB; for a larger device "
        "write k40c:device_memory=13958643712B",
        id="budget-above-the-device",
    ),
    pytest.param(
        (*ONE, "--budget", "700MiB"),
        "no policy fits 'alexnet:batch=20' into 700.000 MiB: operation 'lrn1.backward' "
        "alone, with what is always there, needs 792.125 MiB, 96599888 bytes more",
        id="budget-below-the-largest-operation",
    ),
    pytest.param(
        ("simulate", "/nowhere/step.yaml", "--machine", "k40c"),
        "/nowhere/step.yaml: cannot be read as a trace file: No such file or directory",
        id="missing-trace-file",
    ),
    pytest.param(
        ("simulate", "alexnet", "--machine", "/nowhere/toy.yaml"),
        "/nowhere/toy.yaml: cannot be read as a machine file: No such file or directory",
        id="missing-machine-file",
    ),
    pytest.param(
        (*ONE, "--plot", "/nowhere/memory.png"),
        "/nowhere/memory.png: ",
        id="plot-into-a-missing-folder",
    ),
    pytest.param(
        (*ONE, "--timeline", "/nowhere/step.json"),
        "/nowhere/step.json: cannot be written",
        id="timeline-into-a-missing-folder",
    ),
    pytest.param(
        (*ONE, "--schedule", "/nowhere/s.json"),
        "/nowhere/s.json: cannot be written",
        id="schedule-into-a-missing-folder",
    ),
]


@pytest.mark.parametrize(("arguments", "phrase"), BAD_INPUT)
def test_bad_input_is_answered_with_one_sentence(arguments, phrase):
    assert phrase in refuse(*arguments)


def test_a_plot_with_an_unknown_ending_is_answered_with_those_that_exist(tmp_path):
    path = tmp_path / "memory.bmp3"
    sentence = refuse(*ONE, "--plot", str(path))
    assert sentence.startswith(f"{path}: ")
    assert "png" in sentence
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "raw"),
    [("a.json", b'{"format": '), ("a.json.gz", b"\x1f\x8b"), ("a.yaml", b"[\n"), ("b.yaml", b"")],
    ids=["truncated-json", "truncated-gzip", "broken-yaml", "empty-yaml"],
)
def test_an_unreadable_trace_file_is_named(name, raw, tmp_path):
    path = tmp_path / name
    path.write_bytes(raw)
    assert refuse("simulate", str(path), "--machine", "k40c").startswith(f"{path}: ")


def test_a_machine_file_that_lacks_a_figure_is_named_with_the_figure(tmp_path):
    path = tmp_path / "toy.yaml"
    path.write_text(
        "format: superneurons-machine/1\n"
        "name: toy\n"
        "description: a toy\n"
        "figures:\n"
        "  device_memory: {value: 1GiB, source: by hand}\n"
    )
    assert refuse("simulate", "alexnet", "--machine", str(path)) == (
        f"{path}: the figure 'compute_rate' is missing; add it with its source"
    )


# -- in a process of its own -----------------------------------------------------------------------


def test_the_module_is_the_command_line(tmp_path):
    done = process("-m", "superneurons", "simulate", *SMALL, "--json", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert [report["policy"] for report in json.loads(done.stdout)] == [
        "baseline",
        "liveness",
        "liveness+offload",
        "superneurons",
    ]


def test_bad_input_ends_a_process_with_status_2_and_no_traceback(tmp_path):
    done = process("-m", "superneurons", "simulate", *SMALL, "--budget", "1MiB", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("superneurons: no policy fits 'alexnet:batch=20' into 1.000 MiB: ")


def test_a_simulation_without_a_plot_loads_no_heavy_library(tmp_path):
    code = (
        "import sys\n"
        "from superneurons.cli import main\n"
        f"main(['simulate', *{SMALL!r}, '--timeline', 't.json'], standalone_mode=False)\n"
        "heavy = {'torch', 'matplotlib', 'numpy', 'scipy', 'pandas'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(heavy)) or None)\n"
    )
    done = process("-c", code, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "t.json").exists()


def test_a_kind_that_nobody_knows_is_refused():
    sentence = refuse(
        "simulate", "alexnet", "--machine", "k40c", "--policy", "recompute:kinds=convolution"
    )
    assert "no operation of 'alexnet:batch=200' is of kind 'convolution'; kinds are: " in sentence


def test_a_plot_that_cannot_be_written_leaves_what_was_there(tmp_path):
    path = tmp_path / "plot.nonsense"
    path.write_bytes(b"before")
    sentence = refuse(*ONE, "--plot", str(path))
    assert "the plot cannot be written" in sentence
    assert path.read_bytes() == b"before"


def test_a_trace_is_summed_up():
    out = succeed("traces", "alexnet:batch=200")
    assert out.splitlines()[:2] == [
        "alexnet:batch=200: 46 operations, 61 storages, places: everywhere, times: roofline",
        "operations: 23 forward, 23 backward",
    ]
    assert "activation: 1,469.592 MiB" in out
    assert "parameter: 237.954 MiB" in out
    assert "no policy runs it in less than 1,496.477 MiB (at 'lrn1.backward')" in out


def test_the_manuals_of_a_stack_are_those_of_its_parts():
    out = succeed("policies", "liveness+offload:lookahead=2")
    assert "Free each tensor after" in out
    assert "Copy checkpoints to a tier" in out
