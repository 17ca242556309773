"""Ablations: one thing is varied, and only that."""

import pytest
from click.testing import CliRunner

from superneurons.cli import main
from superneurons.studies import ABLATIONS, ablate, find_ablation

SMALL = "alexnet:batch=8"


def reports(name, trace=SMALL, machine="k40c", budget=None):
    return dict(ablate(find_ablation(name), trace, machine, budget))


@pytest.mark.parametrize("name", ABLATIONS)
def test_each_varies_one_thing_and_names_each_variant(name):
    found = reports(name)
    machines, policies = (
        {getattr(report, which) for report in found.values()} for which in ("machine", "policy")
    )
    varied, fixed = sorted((len(machines), len(policies)), reverse=True)
    assert (varied, fixed) == (len(found), 1)
    assert len({report.trace for report in found.values()}) == 1
    assert "" not in found


def test_an_earlier_prefetch_never_takes_less_memory():
    peaks = [report.step_peak_bytes for report in reports("lookahead").values()]
    assert peaks == sorted(peaks)
    assert peaks[0] < peaks[-1]


def test_a_faster_link_never_makes_the_step_longer():
    times = [report.step_time_ns for report in reports("link").values()]
    assert times == sorted(times, reverse=True)
    assert times[0] > times[-1]


def test_figures_of_the_machine_that_are_given_are_kept():
    found = reports("pages", machine="k40c:host_latency=1us")
    assert [report.machine for report in found.values()] == [
        "k40c:host_latency=1us,host_pages=pinned",
        "k40c:host_latency=1us,host_pages=pageable",
    ]


def test_a_budget_holds_for_all_variants():
    found = reports("cache", budget=900 * 2**20)
    assert {report.budget_bytes for report in found.values()} == {900 * 2**20}


def test_command_lists_the_questions():
    result = CliRunner().invoke(main, ["ablate"])
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.output.splitlines()] == list(ABLATIONS)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["everything"], "no ablation 'everything'; there are: lookahead, "),
        (
            ["allocator", SMALL, "--machine", "k40c:allocator=pool"],
            "'allocator' is given twice in 'k40c:allocator=pool,allocator=exact'",
        ),
        (["pages", SMALL, "--machine", "h200"], "the figure 'host_pageable_rate' is missing"),
        (["link", "alexnets"], "no trace 'alexnets'"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_one_sentence(arguments, sentence):
    result = CliRunner().invoke(main, ["ablate", *arguments])
    assert result.exit_code == 2
    assert sentence in result.output
    assert "Traceback" not in result.output
