"""How people write things: quantities with units, names with parameters."""

from dataclasses import dataclass
from typing import Literal

import pytest

from superneurons.errors import InvalidInput
from superneurons.notation import (
    Call,
    NBytes,
    build,
    describe,
    format_bytes,
    format_ns,
    parse_bytes,
    parse_call,
    parse_calls,
    parse_quantity,
)


@dataclass(frozen=True, kw_only=True)
class Tool:
    """Something with one parameter of each type that the command line can write."""

    count: int = 3
    tier: str = "host"
    strategy: Literal["speed", "memory"] = "speed"
    kinds: tuple[str, ...] = ("conv", "matmul")
    depths: tuple[int, ...] = (1, 2)
    size: NBytes = 2**20
    bound: NBytes | None = None
    label: str | None = None


def made(parameters: str) -> Tool:
    return build(Tool, parse_call(f"tool:{parameters}"), "policy")


def needy(batch: int, image: int = 227) -> tuple[int, int]:
    return batch, image


# -- quantities ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "unit", "number"),
    [
        ("0", "bytes", 0),
        ("17", "bytes", 17),
        ("17B", "bytes", 17),
        ("2kB", "bytes", 2_000),
        ("2KB", "bytes", 2_000),
        ("2KiB", "bytes", 2_048),
        ("3MB", "bytes", 3_000_000),
        ("3MiB", "bytes", 3 * 2**20),
        ("6GB", "bytes", 6 * 10**9),
        ("6GiB", "bytes", 6 * 2**30),
        ("1TB", "bytes", 10**12),
        ("1TiB", "bytes", 2**40),
        ("1.5KiB", "bytes", 1_536),
        (".5KiB", "bytes", 512),
        (" 6 GiB ", "bytes", 6 * 2**30),
        ("8GB/s", "bytes per second", 8 * 10**9),
        ("55.2GB/s", "bytes per second", 55_200_000_000),
        ("1MiB/s", "bytes per second", 2**20),
        ("4.3TFLOP/s", "flop per second", 4_300_000_000_000),
        ("100FLOP/s", "flop per second", 100),
        ("5ns", "ns", 5),
        ("5us", "ns", 5_000),
        ("0.25ms", "ns", 250_000),
        ("2s", "ns", 2 * 10**9),
        (0, "ns", 0),
        ("0.0", "ns", 0),
        (12, "bytes", 12),
    ],
)
def test_a_quantity_is_an_exact_integer_in_its_unit(text, unit, number):
    assert parse_quantity(text, unit) == number


def test_a_number_that_floats_cannot_hold_is_still_exact():
    # 2**53 + 1 is the first integer that a float skips.
    assert parse_bytes("9007199254740993B") == 2**53 + 1
    assert parse_bytes("9007199254740.993kB") == 2**53 + 1


@pytest.mark.parametrize("text", ["0.3B", "1.0001KiB", "0.1KiB", 1.5])
def test_a_fraction_of_a_byte_is_refused(text):
    with pytest.raises(InvalidInput, match=r"is not a whole number of bytes$"):
        parse_bytes(text)


NONSENSE = [
    "much",
    "GiB",
    "-1",
    "-6GiB",
    "6XB",
    "6gib",
    "1e9",
    "1_000",
    "1,000",
    "0x10",
    "1.",
    "6GB/s",
    "5ms",
    "nan",
    "inf",
    "none",
]


@pytest.mark.parametrize("text", [*NONSENSE, "", " ", "6 GiB 2", -1, True, False, float("nan")])
def test_nonsense_is_no_number_of_bytes(text):
    with pytest.raises(InvalidInput) as caught:
        parse_bytes(text)
    assert str(caught.value) == f"{text!r} is not a number of bytes; write it like 6GiB"


@pytest.mark.parametrize(
    ("text", "unit", "example"),
    [
        ("8GB", "bytes per second", "8GB/s"),
        ("12", "bytes per second", "8GB/s"),
        (12, "ns", "5us"),
        ("8GFLOP", "flop per second", "4.3TFLOP/s"),
        ("8GiFLOP/s", "flop per second", "4.3TFLOP/s"),
        ("8min", "ns", "5us"),
        ("8GB/s", "ns", "5us"),
    ],
)
def test_a_wrong_unit_is_answered_with_an_example_of_the_right_one(text, unit, example):
    with pytest.raises(InvalidInput) as caught:
        parse_quantity(text, unit)
    assert str(caught.value) == f"{text!r} is not a number of {unit}; write it like {example}"


def test_bytes_are_shown_in_mebibytes_if_there_is_one_and_times_in_milliseconds():
    assert format_bytes(0) == "0 B"
    assert format_bytes(2**20 - 1) == "1,048,575 B"
    assert format_bytes(2**20) == "1.000 MiB"
    assert format_bytes(1489 * 2**20 + 2**19) == "1,489.500 MiB"
    assert format_ns(0) == "0.000 ms"
    assert format_ns(1_234_567_800) == "1,234.568 ms"


# -- names with parameters -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "call"),
    [
        ("liveness", Call("liveness", {})),
        ("  liveness ", Call("liveness", {})),
        ("offload:lookahead=3", Call("offload", {"lookahead": "3"})),
        ("offload:lookahead=3,tier=host", Call("offload", {"lookahead": "3", "tier": "host"})),
        (
            "offload: lookahead = 3 , tier = host",
            Call("offload", {"lookahead": "3", "tier": "host"}),
        ),
        ("k40c:host_to_device=12GB/s", Call("k40c", {"host_to_device": "12GB/s"})),
        ("t:rule=a=b", Call("t", {"rule": "a=b"})),  # only the first = separates
        ("t:at=a:b", Call("t", {"at": "a:b"})),  # and only the first :
    ],
)
def test_a_name_with_parameters_is_split(text, call):
    assert parse_call(text) == call


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("offload:", "''"),
        ("offload:lookahead", "'lookahead'"),
        ("offload:lookahead=", "'lookahead='"),
        ("offload:=3", "'=3'"),
        ("offload:lookahead=3,", "''"),
        ("offload:lookahead=3,,tier=host", "''"),
        ("offload:lookahead=3,host", "'host'"),
    ],
)
def test_what_is_not_key_equals_value_is_named(text, part):
    with pytest.raises(InvalidInput) as caught:
        parse_call(text)
    assert str(caught.value) == f"{part} in {text!r} is not of the form key=value"


def test_a_parameter_that_is_given_twice_is_refused():
    with pytest.raises(InvalidInput) as caught:
        parse_call("offload:lookahead=3,tier=host,lookahead=4")
    assert str(caught.value) == (
        "'lookahead' is given twice in 'offload:lookahead=3,tier=host,lookahead=4'"
    )


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("liveness", ["liveness"]),
        ("baseline,liveness", ["baseline", "liveness"]),
        ("baseline, liveness", ["baseline", "liveness"]),
        ("offload:lookahead=3,tier=host", ["offload:lookahead=3,tier=host"]),
        ("offload:lookahead=3,liveness", ["offload:lookahead=3", "liveness"]),
        ("offload:lookahead=3,cache:tier=host", ["offload:lookahead=3", "cache:tier=host"]),
        (
            "liveness+offload:lookahead=3,tier=host,baseline",
            ["liveness+offload:lookahead=3,tier=host", "baseline"],
        ),
        (
            "offload:lookahead=3,tier=host+liveness,baseline",
            ["offload:lookahead=3,tier=host+liveness", "baseline"],
        ),
        (
            "offload:lookahead=3,liveness+cache:tier=host",
            ["offload:lookahead=3", "liveness+cache:tier=host"],
        ),
        # not a bare key: a stack, and it is wrong in one way only
        ("offload:lookahead=3,liveness+tier=host", ["offload:lookahead=3", "liveness+tier=host"]),
        ("lookahead=3", ["lookahead=3"]),  # there is no name before it that it could belong to
    ],
)
def test_a_bare_key_equals_value_after_a_comma_belongs_to_the_name_before(text, names):
    assert parse_calls(text) == names


# -- building --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "field", "value"),
    [
        ("count=4", "count", 4),
        ("count=-4", "count", -4),
        ("tier=peer", "tier", "peer"),
        ("tier=none", "tier", "none"),  # a name like any other: a tier cannot be None
        ("tier=4", "tier", "4"),
        ("strategy=memory", "strategy", "memory"),
        ("kinds=norm", "kinds", ("norm",)),
        ("kinds=norm/pool/conv", "kinds", ("norm", "pool", "conv")),
        ("depths=3/4/5", "depths", (3, 4, 5)),
        ("size=64MiB", "size", 64 * 2**20),
        ("size=17", "size", 17),
        ("bound=64kB", "bound", 64_000),
        ("bound=none", "bound", None),
        ("bound=None", "bound", None),
        ("label=none", "label", None),
        ("label=mine", "label", "mine"),
    ],
)
def test_a_parameter_is_converted_to_its_annotated_type(parameters, field, value):
    found = getattr(made(parameters), field)
    assert found == value
    assert type(found) is type(value)


def test_parameters_that_are_not_given_keep_their_defaults():
    assert made("count=4,label=mine") == Tool(count=4, label="mine")
    assert build(Tool, parse_call("tool"), "policy") == Tool()


def test_functions_are_built_like_classes():
    assert build(needy, parse_call("net:batch=2"), "trace") == (2, 227)


def test_a_parameter_that_does_not_exist_is_answered_with_those_that_do():
    with pytest.raises(InvalidInput) as caught:
        made("depth=4")
    assert str(caught.value) == (
        "policy 'tool' has no parameter 'depth'; "
        "it has: count, tier, strategy, kinds, depths, size, bound, label"
    )


def test_a_target_without_parameters_says_so():
    with pytest.raises(InvalidInput) as caught:
        build(lambda: None, parse_call("nothing:depth=4"), "policy")
    assert str(caught.value) == "policy 'nothing' has no parameter 'depth'; it has: none"


def test_a_parameter_without_a_default_has_to_be_given():
    with pytest.raises(InvalidInput) as caught:
        build(needy, parse_call("net:image=32"), "trace")
    assert str(caught.value) == "trace 'net' needs the parameter 'batch'"


@pytest.mark.parametrize(
    ("parameters", "key", "why"),
    [
        ("count=many", "count", "'many' cannot be used: Expected `int`"),
        ("count=1.5", "count", "'1.5' cannot be used: Expected `int`"),
        ("count=0x10", "count", "'0x10' cannot be used: Expected `int`"),
        ("count=none", "count", "'none' cannot be used: Expected `int`"),
        ("strategy=slow", "strategy", "'slow' cannot be used; it is one of: speed, memory"),
        ("depths=1/two", "depths", "'1/two' cannot be used: Expected `int`"),
        ("size=much", "size", "'much' is not a number of bytes; write it like 6GiB"),
        ("size=none", "size", "'none' is not a number of bytes; write it like 6GiB"),
        ("bound=-1", "bound", "'-1' is not a number of bytes; write it like 6GiB"),
    ],
)
def test_a_wrong_value_is_answered_with_the_parameter_and_the_reason(parameters, key, why):
    with pytest.raises(InvalidInput) as caught:
        made(parameters)
    message = str(caught.value)
    assert message.startswith(f"policy 'tool', parameter {key!r}: {why}")
    assert "\n" not in message


def test_defaults_are_described_as_they_would_be_written():
    assert describe(Tool) == (
        "count=3,tier=host,strategy=speed,kinds=conv/matmul,depths=1/2,size=1048576,"
        "bound=None,label=None"
    )
    assert describe(needy) == "batch=...,image=227"
    assert describe(lambda: None) == ""


def test_what_is_described_can_be_written_back():
    assert made(describe(Tool)) == Tool()
