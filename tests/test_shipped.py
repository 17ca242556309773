"""The steps that come with the package."""

from importlib.resources import files

import msgspec
import pytest

from superneurons.errors import InvalidInput
from superneurons.machines import find_machine
from superneurons.policies import find_policy
from superneurons.sim import simulate
from superneurons.traces import find_trace, shipped

FOLDER = files("superneurons.traces") / "recorded"


def test_index_and_files_name_the_same_steps():
    there = {each.name for each in FOLDER.iterdir()} - {"index.yaml"}
    assert there == {f"{name}.json.gz" for name in shipped()}


def test_no_file_is_larger_than_a_few_hundred_kilobytes():
    assert all(len(each.read_bytes()) < 300_000 for each in FOLDER.iterdir())


@pytest.mark.parametrize("name", shipped())
def test_each_has_its_own_name_and_runs(name):
    trace = find_trace(name)
    assert trace.name == name
    report = simulate(trace, find_policy("liveness"), find_machine("h200"))
    assert report.fits
    assert report.device_peak_bytes >= trace.facts.floor_nbytes


@pytest.mark.parametrize("name", shipped())
def test_an_estimate_says_that_it_is_one(name):
    trace = find_trace(name)
    if name.endswith("-estimate"):
        assert trace.notes["made"].startswith("estimated without a GPU")
        assert trace.times == "roofline"
    else:
        assert trace.times == "measured"
        assert trace.notes["gpu"]


RECORDED = [name for name in shipped() if not name.endswith("-estimate")]


@pytest.mark.parametrize("name", RECORDED)
def test_a_recording_replays_what_torch_said_of_the_step(name):
    """The notes have torch's own peaks."""
    trace = find_trace(name)
    assert "caveat" not in trace.notes
    said = {key: int(value) for key, value in trace.notes.items() if value.isdecimal()}
    reports = {
        allocator: simulate(
            trace, find_policy("liveness"), find_machine(f"h200:allocator={allocator}")
        )
        for allocator in ("exact", "caching")
    }
    assert reports["exact"].device_peak_bytes == said["requested_peak_nbytes"]
    caching = reports["caching"]
    assert caching.allocated_peak_bytes == pytest.approx(said["allocated_peak_nbytes"], rel=0.005)
    assert caching.reserved_peak_bytes == pytest.approx(said["reserved_peak_nbytes"], rel=0.02)


@pytest.mark.parametrize("name", RECORDED)
def test_a_recording_takes_the_time_of_a_step_that_nobody_looked_into(name):
    trace = find_trace(name)
    report = simulate(trace, find_policy("liveness"), find_machine("h200"))
    assert report.step_time_ns == pytest.approx(int(trace.notes["step_time_ns"]), rel=0.05)


@pytest.mark.parametrize("name", RECORDED)
def test_an_estimate_is_near_the_recording_in_bytes(name):
    estimated, recorded = (
        simulate(find_trace(each), find_policy("liveness"), find_machine("h200")).device_peak_bytes
        for each in (f"{name}-estimate", name)
    )
    # Left out of an estimate are the libraries' workspaces: 68 MB, which is nearly all of the CNN.
    libraries = sum(s.nbytes for s in find_trace(name).storages if s.kind == "other")
    assert estimated + libraries == pytest.approx(recorded, rel=0.02)


def test_a_shipped_step_has_no_parameters():
    name = next(iter(shipped()))
    with pytest.raises(InvalidInput, match="has no parameters"):
        find_trace(f"{name}:batch=3")


@pytest.mark.parametrize("model", ["resnet50", "lstm", "small_cnn"])
def test_the_command_on_the_page_makes_the_file_again(model):
    pytest.importorskip("torch")
    from superneurons import zoo
    from superneurons.executor import estimate

    start = model.replace("_", "-")
    name = next(each for each in shipped() if each.startswith(start) and each.endswith("-estimate"))
    again = msgspec.to_builtins(estimate(getattr(zoo, model), name))
    there = msgspec.to_builtins(find_trace(name))
    for notes in (again.pop("notes", {}), there.pop("notes", {})):
        assert notes["made"].startswith("estimated")
    assert again == there
