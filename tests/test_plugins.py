"""Policies of other distributions: found by entry point, and blamed by name when they break."""

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import ClassVar, final

import msgspec
import pytest
from click.testing import CliRunner, Result

from superneurons.cli import main
from superneurons.errors import PolicyFailed, UnknownName
from superneurons.machines import Machine, find_machine
from superneurons.policies import (
    Component,
    Liveness,
    Part,
    decide,
    find_policy,
    policy_names,
    registry,
)
from superneurons.schedules import Copy, Fetch, Free, Rerun, Run, Schedule
from superneurons.traces import Trace, find_trace

DISTRIBUTION = "superneurons-toys 4.2"


@dataclass(frozen=True)
class FakeEntryPoint:
    """What the registry asks of an entry point, without an installed distribution."""

    name: str
    load: Callable[[], object]
    module: str = __name__
    dist = SimpleNamespace(name="superneurons-toys", version="4.2")


@pytest.fixture
def install(monkeypatch):
    """Install things under names, as a distribution that is called superneurons-toys would."""

    def install(**makers: object) -> None:
        offer(**{name: lambda maker=maker: maker for name, maker in makers.items()})

    def offer(**loads: Callable[[], object]) -> None:
        entries = [FakeEntryPoint(name.replace("_", "-"), load) for name, load in loads.items()]

        def entry_points(*, group: str) -> list[FakeEntryPoint]:
            assert group == "superneurons.policies"
            return entries

        monkeypatch.setattr(registry, "entry_points", entry_points)

    install.lazily = offer
    return install


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments), catch_exceptions=False)


def simulate(policy: str) -> Result:
    return run("simulate", "random:seed=1", "--machine", "k40c", "--policy", policy)


def blame(policy: str) -> str:
    """Return why *policy* fails: the same sentence from Python and from the command line."""
    with pytest.raises(PolicyFailed) as caught:
        decide(find_policy(policy), find_trace("random:seed=1"), find_machine("k40c"))
    result = simulate(policy)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"superneurons: {caught.value}\n"
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- policies that plan the whole step -------------------------------------------------------------


@dataclass(frozen=True)
class Planner:
    """Frees like liveness, and whatever *change* makes of it.

    A second paragraph.
    """

    depth: int = 3

    def schedule(self, trace: Trace, machine: Machine, budget: int | None) -> object:
        return self.change(Liveness().schedule(trace, machine, budget))

    def change(self, schedule: Schedule) -> object:
        return schedule


@dataclass(frozen=True)
class Raises(Planner):
    def change(self, schedule: Schedule) -> object:
        raise ValueError("there is no plan")


@dataclass(frozen=True)
class ReturnsNone(Planner):
    def change(self, schedule: Schedule) -> object:
        return None


@dataclass(frozen=True)
class ReturnsAList(Planner):
    def change(self, schedule: Schedule) -> object:
        return list(schedule.instructions)[:1]


@dataclass(frozen=True)
class DropsAnInstruction(Planner):
    def change(self, schedule: Schedule) -> object:
        return msgspec.structs.replace(schedule, instructions=schedule.instructions[:-1])


@dataclass(frozen=True)
class IsOfAnotherTrace(Planner):
    def change(self, schedule: Schedule) -> object:
        return msgspec.structs.replace(schedule, digest="0" * 32)


@dataclass(frozen=True)
class PutsNonsenseIn(Planner):
    def change(self, schedule: Schedule) -> object:
        return msgspec.structs.replace(schedule, instructions=["free", *schedule.instructions])


def test_a_planner_is_found_listed_and_explained(install):
    install(planner=Planner)
    assert "planner" in policy_names()
    listing = run("policies").stdout
    assert "planner       Frees like liveness, and whatever *change* makes of it.\n" in listing
    manual = run("policies", "planner").stdout
    assert manual.startswith("planner:depth=3\n\nFrees like liveness")
    assert "A second paragraph." in manual


def test_a_planner_is_simulated_with_its_parameters(install):
    install(planner=Planner)
    assert find_policy("planner:depth=5") == Planner(depth=5)
    result = simulate("planner:depth=5")
    assert (result.exit_code, result.stderr) == (0, "")


def test_a_planner_that_raises_is_blamed_with_the_line(install):
    install(planner=Raises)
    sentence = blame("planner")
    assert f"of {DISTRIBUTION} raised ValueError: there is no plan (" in sentence
    assert f"({__file__}, line " in sentence
    assert sentence.endswith(", in change)")


def test_a_planner_that_returns_nothing_is_blamed(install):
    install(planner=ReturnsNone)
    assert blame("planner").endswith(f"of {DISTRIBUTION} returned None, which is no Schedule")


def test_a_planner_that_returns_a_list_is_blamed(install):
    install(planner=ReturnsAList)
    assert f"of {DISTRIBUTION} returned [Run(op=0, algorithm=0)], which is no" in blame("planner")


@pytest.mark.parametrize(
    ("maker", "phrase"),
    [
        (DropsAnInstruction, "(rule: "),
        (PutsNonsenseIn, "'free' is no instruction (rule: order)"),
        (IsOfAnotherTrace, "the schedule was made for trace "),
    ],
    ids=["an-instruction-is-missing", "what-is-no-instruction", "another-trace"],
)
def test_a_planner_that_makes_an_illegal_schedule_is_blamed_with_the_rule(maker, phrase, install):
    install(planner=maker)
    sentence = blame("planner")
    assert f"of {DISTRIBUTION} made a schedule that is refused: " in sentence
    assert phrase in sentence


def test_a_planner_cannot_be_stacked(install):
    install(planner=Planner)
    assert blame("liveness+planner") == (
        f"policy 'planner' of {DISTRIBUTION} plans the whole step and cannot be stacked in "
        "'liveness+planner'; use it alone"
    )


# -- components: parts that wish -------------------------------------------------------------------


@final
@dataclass(frozen=True, kw_only=True, repr=False)
class Wishful(Component):
    """Wishes the same after every operation."""

    name: ClassVar[str] = "wishful"
    wishes: ClassVar[object] = ()

    def begin(self, walk: object) -> Part:
        return WishfulPart(type(self).wishes)


class WishfulPart(Part):
    def __init__(self, wishes: object) -> None:
        self.wishes = wishes

    def after(self, op: int, waiting: int | None) -> object:
        return self.wishes


@final
@dataclass(frozen=True, kw_only=True, repr=False)
class Unbegun(Component):
    """Forgets to return its part."""

    name: ClassVar[str] = "unbegun"

    def begin(self, walk: object) -> None:
        return None


@pytest.mark.parametrize(
    "wishes",
    [
        pytest.param(["free everything"], id="text"),
        pytest.param([None], id="none"),
        pytest.param([Free], id="a-class"),
        pytest.param([7], id="a-number"),
        pytest.param([Run(0)], id="an-instruction-that-is-no-wish"),
    ],
)
@pytest.mark.parametrize("policy", ["wishful", "liveness+wishful", "wishful+liveness"])
def test_a_part_that_wishes_nonsense_is_blamed(policy, wishes, install, monkeypatch):
    install(wishful=Wishful)
    monkeypatch.setattr(Wishful, "wishes", wishes)
    sentence = blame(policy)
    assert f": a part wished for {wishes[0]!r}; a wish is a Free, Copy, Fetch, Disc" in sentence
    assert DISTRIBUTION in sentence


@pytest.mark.parametrize(
    "wishes",
    [
        pytest.param(None, id="nothing"),
        pytest.param(7, id="no-list"),
        pytest.param([Free(10**6)], id="free-no-storage"),
        pytest.param([Copy(10**6)], id="copy-no-storage"),
        pytest.param([Rerun(10**6)], id="rerun-no-operation"),
        pytest.param([Free("conv1.out")], id="free-by-name"),
    ],
)
@pytest.mark.parametrize("policy", ["wishful", "liveness+wishful"])
def test_a_part_that_breaks_the_walk_is_blamed(policy, wishes, install, monkeypatch):
    install(wishful=Wishful)
    monkeypatch.setattr(Wishful, "wishes", wishes)
    assert DISTRIBUTION in blame(policy)


@pytest.mark.parametrize(
    "wish",
    [Copy(0, "moon"), Fetch(0, "moon"), Copy(-1), Free(10**6), Free("x"), Rerun(10**6), Run(0)],
    ids=repr,
)
def test_a_wish_about_what_does_not_exist_is_blamed(wish, install, monkeypatch):
    install(wishful=Wishful)
    monkeypatch.setattr(Wishful, "wishes", [wish])
    sentence = blame("liveness+wishful")
    assert DISTRIBUTION in sentence
    assert f"a part wished for {wish!r}; a wish is " in sentence
    assert "tiers are: host" in sentence


@pytest.mark.parametrize("wish", [Fetch(0), Rerun(0)], ids=repr)
def test_a_wish_that_is_moot_is_skipped(wish, install, monkeypatch):
    install(wishful=Wishful)
    monkeypatch.setattr(Wishful, "wishes", [wish])
    assert simulate("liveness+wishful").exit_code == 0


@pytest.mark.parametrize("policy", ["unbegun", "liveness+unbegun"])
def test_a_component_that_begins_no_part_is_blamed(policy, install):
    install(unbegun=Unbegun)
    assert DISTRIBUTION in blame(policy)


# -- entry points ----------------------------------------------------------------------------------


def fail_to_import() -> object:
    raise ImportError("No module named 'gurobi'")


def test_a_plugin_that_cannot_be_imported_is_blamed(install):
    install.lazily(planner=fail_to_import)
    assert blame("planner") == (
        f"policy 'planner' of {DISTRIBUTION} cannot be loaded: "
        "ImportError: No module named 'gurobi'"
    )


def test_a_plugin_that_cannot_be_imported_is_in_nobodys_way(install):
    install.lazily(planner=fail_to_import)
    assert "planner" in policy_names()
    assert simulate("liveness+offload").exit_code == 0
    with pytest.raises(UnknownName, match="planner"):
        find_policy("planer")


def test_an_entry_point_that_makes_nothing_is_blamed(install):
    install(planner=3)
    assert blame("planner") == (
        f"policy 'planner' of {DISTRIBUTION} is 3; an entry point names a class or function that "
        "makes a policy"
    )


def test_what_makes_nothing_has_no_manual(install):
    install(planner=3)
    result = run("policies", "planner")
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"policy 'planner' of {DISTRIBUTION} is 3; " in result.stderr


def test_a_built_in_policy_is_not_replaced_by_a_plugin(install):
    install(liveness=Planner)
    assert find_policy("liveness") == Liveness()
    assert policy_names().count("liveness") == 1


class Inherits(Planner):
    """A planner whose constructor is its base's."""


class Plain:
    """A planner without parameters, and so without a constructor of its own."""

    def schedule(self, trace: Trace, machine: Machine, budget: int | None) -> Schedule:
        return Liveness().schedule(trace, machine, budget)


@pytest.mark.parametrize(
    ("maker", "parameters"), [(Plain, ""), (Inherits, ":depth=3")], ids=["none", "its-base's"]
)
def test_a_class_without_a_constructor_of_its_own_makes_a_policy(maker, parameters, install):
    install(planner=maker)
    assert run("policies", "planner").stdout.startswith(f"planner{parameters}\n")
    assert simulate(f"planner{parameters}").exit_code == 0


def test_a_function_that_makes_a_policy_is_as_good_as_a_class(install):
    def make(depth: int = 3) -> Planner:
        return Planner(depth)

    install(planner=make)
    assert find_policy("planner:depth=5") == Planner(5)


def unable(depth: int = 3) -> Planner:
    raise RuntimeError("no licence")


def unannotated(depth=3):
    return Planner(depth)


class MakesNoPolicy:
    def __init__(self, depth: int = 3) -> None:
        self.depth = depth

    def __repr__(self) -> str:
        return "makes-no-policy"


@dataclass(frozen=True)
class NeedsAList(Planner):
    needs: ClassVar[list[str]] = ["phases"]


class CannotSayWhatItNeeds:
    def schedule(self, trace: Trace, machine: Machine, budget: int | None) -> Schedule:
        return Liveness().schedule(trace, machine, budget)

    @property
    def needs(self) -> frozenset[str]:
        raise RuntimeError("no idea")


@dataclass(frozen=True)
class CannotSayItsName(Raises):
    def __repr__(self) -> str:
        raise RuntimeError("no name")


@pytest.mark.parametrize(
    ("maker", "policy"),
    [
        pytest.param(unable, "planner", id="making-it-raises"),
        pytest.param(MakesNoPolicy, "planner", id="what-it-makes-has-no-schedule"),
        pytest.param(unannotated, "planner:depth=4", id="a-parameter-has-no-type"),
        pytest.param(NeedsAList, "planner", id="its-needs-are-no-set"),
        pytest.param(CannotSayWhatItNeeds, "planner", id="its-needs-raise"),
        pytest.param(CannotSayItsName, "planner", id="it-raises-and-so-does-its-repr"),
    ],
)
def test_whatever_else_breaks_in_a_plugin_is_told_in_a_sentence(maker, policy, install):
    install(planner=maker)
    result = simulate(policy)
    # What can be made sense of may run; what cannot is blamed on whom it comes from.
    assert result.exit_code == 0 or DISTRIBUTION in result.stderr


@dataclass(frozen=True)
class RaisesTwoLines(Planner):
    def change(self, schedule: Schedule) -> object:
        raise ValueError("first line\n  second line")


def test_an_error_of_several_lines_is_told_in_one(install):
    install(planner=RaisesTwoLines)
    result = simulate("planner")
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert "first line" in line
    assert "second line" in line


@dataclass(frozen=True)
class LabelledWithBrackets(Planner):
    def change(self, schedule: Schedule) -> object:
        return msgspec.structs.replace(schedule, policy="greedy[fast]")


def test_a_label_with_brackets_stands_in_the_table_as_it_is(install):
    install(planner=LabelledWithBrackets)
    assert " greedy[fast] " in simulate("planner").stdout
