"""Machines: figures with sources, read strictly, and the times that follow from them."""

from pathlib import Path

import pytest

from superneurons.errors import InvalidInput, InvalidMachine, UnknownName
from superneurons.machines import Link, find_machine, machine_names, read_machine

FIGURES = {
    "device_memory": "1GiB",
    "compute_rate": "2TFLOP/s",
    "memory_rate": "100GB/s",
    "launch_time": "5us",
    "allocator": "exact",
    "host_memory": "4GiB",
    "device_to_host": "8GB/s",
    "host_to_device": "4GB/s",
    "host_latency": "10us",
}
RATES = ("compute_rate", "memory_rate", "device_to_host", "host_to_device")
NVME = {
    "nvme_memory": "1TB",
    "device_to_nvme": "2GB/s",
    "nvme_to_device": "3GB/s",
    "nvme_latency": "100us",
}


def written(folder: Path, **changes: str | int | None) -> Path:
    """Write a machine file with some figures changed, added or, if None, left out."""
    lines = ["format: superneurons-machine/1", "name: toy", "description: a toy", "figures:"]
    figures = {key: value for key, value in (FIGURES | changes).items() if value is not None}
    lines += [f"  {key}: {{value: {value}, source: by hand}}" for key, value in figures.items()]
    path = folder / "toy.yaml"
    path.write_text("\n".join(lines) + "\n")
    return path


def refusal(path: Path, overrides: dict[str, str] | None = None) -> str:
    """Return what is wrong with the machine file at *path*: one line that begins with its name."""
    with pytest.raises(InvalidMachine) as caught:
        read_machine(path, overrides)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


# -- built-in machines -----------------------------------------------------------------------------


def test_the_machines_of_the_paper_and_the_one_at_hand_are_built_in():
    assert machine_names() == ["h200", "k40c", "k40c-cluster", "titan-xp"]


@pytest.mark.parametrize("name", machine_names())
def test_every_figure_of_a_built_in_machine_has_a_source(name):
    machine = find_machine(name)
    assert machine.name == name
    assert machine.description
    assert machine.sources.keys() == machine.written.keys() >= FIGURES.keys()
    assert all(source.strip() for source in machine.sources.values())
    assert machine.tiers[0].name == "host"


def test_the_k40c_is_the_papers():
    k40c = find_machine("k40c")
    assert k40c.device_nbytes == 12 * 2**30
    host = k40c.tier("host")
    assert host.link == Link(
        out_bytes_per_s=8 * 10**9, in_bytes_per_s=8 * 10**9, latency_ns=10_000, duplex="full"
    )
    assert k40c.capacities == {"host": 128 * 2**30}
    assert k40c.written["device_to_host"] == "8GB/s"
    assert "paper 3.3" in k40c.sources["device_to_host"]


def test_an_unknown_machine_is_answered_with_those_that_exist():
    with pytest.raises(UnknownName) as caught:
        find_machine("p100")
    assert str(caught.value) == (
        "no machine 'p100'; there are: h200, k40c, k40c-cluster, titan-xp, or give a .yaml file"
    )


# -- overrides -------------------------------------------------------------------------------------


def test_an_override_replaces_one_figure_and_says_where_it_is_from():
    plain, fast = find_machine("k40c"), find_machine("k40c:host_to_device=12GB/s,host_latency=0ns")
    assert fast.name == "k40c:host_to_device=12GB/s,host_latency=0ns"
    assert fast.tier("host").link == Link(
        out_bytes_per_s=8 * 10**9, in_bytes_per_s=12 * 10**9, latency_ns=0, duplex="full"
    )
    assert fast.written["host_to_device"] == "12GB/s"
    assert fast.sources["host_to_device"] == "given on the command line"
    assert fast.sources["device_to_host"] == plain.sources["device_to_host"]
    assert fast.device_nbytes == plain.device_nbytes


def test_a_file_is_overridden_like_a_built_in(tmp_path):
    path = written(tmp_path)
    assert find_machine(str(path)).device_nbytes == 2**30
    machine = find_machine(f"{path}:device_memory=2GiB")
    assert machine.name == "toy:device_memory=2GiB"
    assert machine.device_nbytes == 2 * 2**30


def test_overrides_may_add_a_whole_tier(tmp_path):
    machine = read_machine(written(tmp_path), NVME)
    assert [tier.name for tier in machine.tiers] == ["host", "nvme"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "device_memory=much",
            "figure 'device_memory': 'much' is not a number of bytes; write it ",
        ),
        (
            "host_latency=8GB",
            "figure 'host_latency': '8GB' is not a number of ns; write it like 5us",
        ),
        ("speed=3", "figure 'speed' means nothing here; there are: allocator, compute_rate, "),
        ("nvme_latency=1us", "the figure 'nvme_memory' is missing; add it with its source"),
        ("host_duplex=both", "host_duplex is 'both'; it is one of: full, half"),
    ],
)
def test_a_wrong_override_names_the_figure(override, message):
    with pytest.raises(InvalidMachine) as caught:
        find_machine(f"k40c:{override}")
    assert str(caught.value).startswith(f"k40c:{override}: {message}")


# -- machine files ---------------------------------------------------------------------------------


@pytest.mark.parametrize("key", FIGURES)
def test_a_missing_figure_is_named_with_its_file(key, tmp_path):
    path = written(tmp_path, **{key: None})
    assert refusal(path) == f"the figure {key!r} is missing; add it with its source"


@pytest.mark.parametrize("key", NVME)
def test_a_tier_needs_all_its_figures(key, tmp_path):
    path = written(tmp_path, **(NVME | {key: None, "nvme_duplex": "half"}))
    assert refusal(path) == f"the figure {key!r} is missing; add it with its source"


def test_an_unknown_figure_is_answered_with_those_that_mean_something(tmp_path):
    assert refusal(written(tmp_path, memory="12GiB")) == (
        "figure 'memory' means nothing here; there are: allocator, compute_rate, copy_issue_time, "
        "device_memory, device_to_host, free_time, gpu, half_rate, host_duplex, host_latency, "
        "host_memory, host_pageable_rate, host_pages, host_to_device, launch_time, malloc_time, "
        "memory_rate, tf32_rate"
    )


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("device_memory", "12GB/s", "'12GB/s' is not a number of bytes; write it like 6GiB"),
        ("device_memory", "much", "'much' is not a number of bytes; write it like 6GiB"),
        ("device_memory", -1, "'-1' is not a number of bytes; write it like 6GiB"),
        ("device_memory", "0.3B", "'0.3B' is not a whole number of bytes"),
        ("compute_rate", "4TB/s", "'4TB/s' is not a number of flop per second; write it like 4.3"),
        (
            "memory_rate",
            "288GB",
            "'288GB' is not a number of bytes per second; write it like 8GB/s",
        ),
        ("device_to_host", "8Gbit/s", "'8Gbit/s' is not a number of bytes per second; write it "),
        ("launch_time", "5 minutes", "'5 minutes' is not a number of ns; write it like 5us"),
        ("host_latency", "10GB", "'10GB' is not a number of ns; write it like 5us"),
        ("copy_issue_time", 40, "'40' is not a number of ns; write it like 5us"),
    ],
)
def test_a_figure_in_a_wrong_unit_is_named_with_the_right_one(key, value, sentence, tmp_path):
    message = refusal(written(tmp_path, **{key: value}))
    assert message.startswith(f"figure {key!r}: {sentence}")


@pytest.mark.parametrize("key", ["device_memory", *RATES])
@pytest.mark.parametrize("zero", [0, "0kB/s", "0"])
def test_a_rate_of_zero_is_refused(key, zero, tmp_path):
    if zero == "0kB/s" and key in ("device_memory", "compute_rate"):
        zero = {"device_memory": "0GiB", "compute_rate": "0TFLOP/s"}[key]
    path = written(tmp_path, **{key: zero})
    assert refusal(path) == f"figure {key!r} is 0; it must be more"


def test_a_latency_a_launch_and_a_tier_may_be_nothing(tmp_path):
    machine = read_machine(written(tmp_path, launch_time="0ns", host_latency=0, host_memory=0))
    assert machine.launch_ns == 0
    assert machine.tier("host").link.out_ns(0) == 0
    assert machine.capacities == {"host": 0}


def test_a_duplex_other_than_full_and_half_is_refused(tmp_path):
    path = written(tmp_path, host_duplex="simplex")
    assert refusal(path) == "host_duplex is 'simplex'; it is one of: full, half"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("description: a toy\n", "", "Object missing required field `description`"),
        ("name: toy", "name: toy\nowner: me", "Object contains unknown field `owner`"),
        ("name: toy", "name: [toy]", "name: Expected `str`, got `array`"),
        (
            "machine/1",
            "machine/2",
            "is a machine file version 2; this superneurons reads version 1",
        ),
        ("name: toy", "name: [toy", "cannot be read as a machine file: "),
    ],
    ids=["missing-field", "unknown-field", "wrong-type", "another-version", "broken-yaml"],
)
def test_a_machine_file_is_read_strictly(old, new, message, tmp_path):
    path = written(tmp_path)
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(InvalidInput) as caught:
        read_machine(path)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("figure", "phrase"),
    [
        ("5us", "figure 'launch_time' is '5us'; write {value: 5us, source: ...}"),
        ("{value: 5us}", "Object missing required field `source`"),
        ("{value: 5us, source: by hand, from: me}", "Object contains unknown field `from`"),
        ("{value: 1.5, source: by hand}", "Expected `int | str`, got `float`"),
    ],
    ids=["bare", "no-source", "unknown-field", "float"],
)
def test_a_figure_that_is_not_value_and_source_is_told_by_its_name(figure, phrase, tmp_path):
    path = written(tmp_path)
    path.write_text(path.read_text().replace("{value: 5us, source: by hand}", figure))
    with pytest.raises(InvalidInput) as caught:
        read_machine(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert phrase in str(caught.value)
    assert "launch_time" in str(caught.value)


def test_a_missing_machine_file_is_refused(tmp_path):
    path = tmp_path / "nowhere.yaml"
    with pytest.raises(InvalidInput) as caught:
        find_machine(str(path))
    assert str(caught.value) == (
        f"{path}: cannot be read as a machine file: No such file or directory"
    )


# -- times -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flops", "nbytes", "ns"),
    [
        (0, 0, 0),
        (1, 0, 1),  # 0.0005 ns at 2 TFLOP/s: up to a whole one
        (2_000, 0, 1),
        (2_001, 0, 2),
        (0, 1, 1),  # 0.01 ns at 100 GB/s
        (0, 100, 1),
        (0, 101, 2),
        (4_000_000, 100_000, 2_000),  # arithmetic takes 2000 ns, memory 1000
        (4_000_000, 300_000, 3_000),  # arithmetic takes 2000 ns, memory 3000
    ],
)
def test_an_operation_takes_the_longer_of_arithmetic_and_memory_rounded_up(
    flops, nbytes, ns, tmp_path
):
    assert read_machine(written(tmp_path)).roofline_ns(flops, nbytes) == ns


@pytest.mark.parametrize(
    ("nbytes", "out_ns", "in_ns"),
    [
        (0, 10_000, 10_000),  # the latency is paid even for nothing
        (1, 10_001, 10_001),  # 0.125 and 0.25 ns: up to a whole one
        (4, 10_001, 10_001),
        (8, 10_001, 10_002),
        (9, 10_002, 10_003),
        (2**20, 10_000 + 131_072, 10_000 + 262_144),
        (2**40, 10_000 + 137_438_953_472, 10_000 + 274_877_906_944),
    ],
)
def test_a_transfer_takes_the_latency_and_its_bytes_at_the_rate_of_its_way(
    nbytes, out_ns, in_ns, tmp_path
):
    link = read_machine(written(tmp_path)).tier("host").link
    assert (link.out_ns(nbytes), link.in_ns(nbytes)) == (out_ns, in_ns)


def test_times_are_exact_where_floats_are_not():
    link = Link(out_bytes_per_s=3, in_bytes_per_s=10**9, latency_ns=0, duplex="full")
    assert link.out_ns(10**9) == 333_333_333_333_333_334  # a float has 53 bits
    assert link.in_ns(2**53 + 1) == 2**53 + 1


# -- tiers -----------------------------------------------------------------------------------------


def test_a_tier_beyond_the_host_is_described_by_figures_of_its_own(tmp_path):
    machine = read_machine(written(tmp_path, **NVME, nvme_duplex="half"))
    assert machine.capacities == {"host": 4 * 2**30, "nvme": 10**12}
    nvme = machine.tier("nvme")
    assert nvme.link == Link(
        out_bytes_per_s=2 * 10**9, in_bytes_per_s=3 * 10**9, latency_ns=100_000, duplex="half"
    )
    assert nvme.link.out_ns(3) == 100_002
    assert nvme.link.in_ns(3) == 100_001
    assert machine.tier("host").link.duplex == "full"  # where the file does not say
    assert machine.tier("remote") is None


def test_the_second_gpu_of_the_h200_is_a_tier():
    h200 = find_machine("h200")
    assert list(h200.capacities) == ["host", "peer"]
    assert h200.tier("peer").link.out_ns(394) == 2_001


def test_a_figure_that_is_given_twice_is_refused(tmp_path):
    path = written(tmp_path)
    text = path.read_text()
    path.write_text(text.replace("name: toy", "name: toy\nname: other", 1))
    with pytest.raises(InvalidInput, match="'name' is given twice in the mapping at line 1"):
        read_machine(path)
