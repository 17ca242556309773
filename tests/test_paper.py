"""What is printed, beside what comes out: every agreement that the page claims, and the shapes."""

import re
import shutil
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
from click.testing import CliRunner

from superneurons.cli import main
from superneurons.errors import DoesNotFit
from superneurons.machines import find_machine
from superneurons.policies import find_policy
from superneurons.sim import simulate
from superneurons.studies.paper import EXHIBITS, Row, Table, printed, write_page
from superneurons.studies.paper.calibration import timed_network, with_room
from superneurons.studies.paper.capacity import host_rule, widest
from superneurons.studies.paper.page import section
from superneurons.studies.paper.speed import report_of
from superneurons.traces import find_trace

DOCS = Path(__file__).parent.parent / "docs"
QUICK = [name for name in EXHIBITS if name != "table4"]  # that one is a search of its own


@cache
def exhibit(name):
    return EXHIBITS[name]()


def table(name, title):
    return next(table for table in exhibit(name).tables if table.title == title)


def computed(name, title):
    return {row.label: row.computed for row in table(name, title).rows}


# -- exact, or as close as the drawing ------------------------------------------------------------


def test_table_1_counts_are_exact():
    found = table("table1", "Operations that are computed again")
    assert [row.computed for row in found.rows] == [row.printed for row in found.rows]
    assert len(found.rows) == 9


def test_table_1_peaks_are_exact_but_for_the_slip():
    for row in table("table1", "Peak memory").rows:
        # No sum of tensor sizes gives the 401 that is printed.
        assert row.computed == (406.125 if row.printed == 401 else row.printed)


@pytest.mark.parametrize("curve", ["liveness", "utp", "all"])
def test_figure_10_is_exact_at_all_46_steps(curve):
    from superneurons.studies.paper.memory import curve as report_of

    report, figures = report_of(curve), printed("fig10")[curve]
    assert [round(step / 2**20, 3) for step in report.step_bytes] == figures["mib"]
    assert report.step_live_tensors == figures["tensors"]
    assert len(figures["mib"]) == 46


def test_the_printed_curves_are_those_of_the_golden_table():
    rows = (Path(__file__).parent / "golden" / "fig10.txt").read_text().splitlines()[1:]
    for column, curve in ((3, "liveness"), (5, "utp"), (7, "all")):
        assert [float(row.split()[column]) for row in rows] == printed("fig10")[curve]["mib"]


def test_figure_2_is_within_a_tenth_of_a_percent():
    rows = table("fig2", "Without workspaces").rows
    assert len(rows) == 7
    for row in rows:
        assert row.computed == pytest.approx(row.printed, rel=0.001)


def test_figure_8b_is_within_0_05_points():
    rows = table("fig8", "(b) Memory").rows
    assert len(rows) == 7 + 6 + 6
    for row in rows:
        assert row.computed == pytest.approx(row.printed, abs=0.05), row.label
    none = [figure for shares in printed("fig8b").values() for figure in shares.values() if figure]
    assert len(none) <= len(rows)  # no printed share is left out


def test_ratios_of_table_4_follow_from_its_depths():
    for name, ratio in printed("table4", "ratios").items():
        depths = printed("table4")
        assert depths["superneurons"] / depths[name] == pytest.approx(ratio, abs=0.0001)


def test_the_average_of_table_5_does_not_follow_from_its_batches():
    (row,) = table("table5", "The text's average").rows
    assert row.printed == 1.8947
    assert row.computed == pytest.approx(2.9482, abs=0.0001)


# -- how deep and how wide -------------------------------------------------------------------------


def test_host_is_calibrated_on_resnet50_alone():
    marked = [
        (name, row.label)
        for name in ("table5",)
        for each in exhibit(name).tables
        for row in each.rows
        if row.calibrated
    ]
    assert all("ResNet50" in label for _, label in marked)
    assert widest("resnet50").host == 384
    assert round(host_rule().nbytes / 2**30, 1) == 106.6


def test_residual_networks_are_predicted_within_two_and_a_half_percent():
    by_network = computed("table5", "Largest batch, the host as the release needs it")
    assert by_network["ResNet101 (limit: host)"] == pytest.approx(256, rel=0.025)
    assert by_network["ResNet152 (limit: host)"] == pytest.approx(176, rel=0.025)


def test_our_own_deepest_fits_and_the_next_does_not():
    machine, policy = find_machine("k40c"), find_policy("superneurons")
    for n3, fits in ((912, True), (913, False)):
        trace = find_trace(f"resnet:n1=6,n2=32,n3={n3},n4=6,batch=16")
        assert simulate(trace, policy, machine).fits is fits


def test_headline_fits_the_k40c_and_neither_baseline_nor_liveness_does():
    rows = [row.label for row in table("headline", "Memory").rows]
    assert "superneurons: fits" in rows[-1]
    assert "baseline: does not fit" in rows
    assert "liveness: does not fit" in rows
    assert computed("headline", "Layers") == {"ResNet2500": 9168}


# -- shapes ----------------------------------------------------------------------------------------


def test_pool_gains_more_the_deeper_the_residual_network():
    gains = computed("table2", "Speed-up by the pool")
    found = [gains[f"ResNet{n}, batch 16"] for n in (50, 101, 152)]
    assert found == sorted(found)
    assert min(found) > gains["VGG16, batch 16"] > 1
    assert min(found) > gains["AlexNet, batch 128"] > 1


def test_calibration_meets_what_it_was_made_for():
    speeds = computed("table2", "With the pool"), computed("table2", "With cudaMalloc and cudaFree")
    assert speeds[0]["ResNet50, batch 16"] == pytest.approx(32.9, rel=1e-3)
    assert speeds[1]["ResNet50, batch 16"] == pytest.approx(21.5, rel=1e-3)
    assert computed("fig8", "(a) Time")["ResNet50, conv"] == pytest.approx(48.8, rel=1e-3)
    assert computed("fig14", "Speed")["ResNet50, batch 16"] == pytest.approx(170, rel=1e-3)


def test_only_resnet50_is_calibrated_on():
    for name in QUICK:
        for each in exhibit(name).tables:
            assert all("ResNet50" in row.label for row in each.rows if row.calibrated), name


def test_tensor_cache_gains_most_for_residual_networks_in_the_order_of_the_print():
    rows = {row.label: row for row in table("fig11", "Speed with the tensor cache").rows}
    assert all(row.computed > 1 for row in rows.values())
    by_print, ours = (
        sorted(rows, key=lambda name: -getattr(rows[name], which))
        for which in ("printed", "computed")
    )
    assert by_print[:4] == ours[:4]
    assert by_print[:3] == ["ResNet50", "ResNet101", "ResNet152"]


def test_traffic_without_the_cache_is_twice_the_outputs_and_with_it_nothing():
    text = table("table3", "Without the tensor cache, as the text describes it").rows
    for one, other in pairwise(text):
        batches = [int(row.label.split()[1]) for row in (one, other)]
        slope = (other.computed - one.computed) / (batches[1] - batches[0])
        assert slope == pytest.approx(5.20e-3, abs=0.005e-3)
    met = table("table3", "Without the tensor cache, the sum that meets the print")
    assert all(abs(row.difference("exact")) < 0.01 for row in met.rows)


def test_less_memory_gives_smaller_workspaces_and_less_speed():
    got = computed("fig12", "Assigned")
    small, large = (
        sum(mib for label, mib in got.items() if label.startswith(panel)) for panel in ("c", "d")
    )
    assert small < large / 2
    speeds = list(computed("fig12", "Speed").values())
    assert speeds[0] < speeds[1]


@pytest.mark.parametrize(("name", "batch"), [("resnet50", 144), ("vgg16", 144), ("alexnet", 1280)])
def test_what_figure_14_tells_the_speed_of_fits_the_card_with_its_fragments(name, batch):
    report = report_of(name, batch)
    assert report.allocator == "pool"
    assert report.reserved_peak_bytes <= 12 * 2**30
    assert (report.copied_out_bytes > 0) == (name == "resnet50")


def test_a_step_that_never_fits_the_pool_is_refused():
    trace = timed_network("alexnet", 500)
    with pytest.raises(DoesNotFit):
        with_room(trace, find_machine("k40c:allocator=pool"), 3 * 10**9)


def test_residual_networks_bend_within_one_step_of_the_figure():
    for row in table("fig14", "Where the curve bends").rows:
        if row.label in ("ResNet50", "ResNet101", "ResNet152", "InceptionV4"):
            assert abs(row.computed - row.printed) <= 16, row.label


# -- what is told of it ----------------------------------------------------------------------------


def test_no_error_is_told_of_a_calibrated_figure():
    shown = Table(
        title="t", unit="u", rule="r", rows=(Row("a", 2.0, 3.0, True), Row("b", 2.0, 3.0))
    )
    assert [cells[3] for cells in shown.cells()] == ["calibrated", "+50.0 %"]
    assert shown.summary().startswith("1 compared: 50.0 % off")


def test_what_differs_is_not_said_to_agree():
    shown = Table(
        title="t",
        unit="u",
        rule="r",
        rows=(Row("a", 1.0, 1.0), Row("b", 1.0, 1.5), Row("c", None, 1.0)),
        compare="exact",
        tolerance=0,
    )
    assert shown.summary() == "1 of 2 agree exactly; the largest difference is 0.500."


def test_what_has_no_counterpart_is_not_passed_over():
    shown = Table(title="t", unit="u", rule="r", rows=(Row("a", 2.0, 3.0), Row("b", 2.0, None)))
    assert shown.summary().endswith(" 1 more are printed and have no counterpart.")


def test_every_printed_exhibit_is_computed():
    from superneurons.studies.paper.printed import _all

    names = {name.rstrip("ab") for name in _all()}
    assert names <= set(EXHIBITS)
    assert set(EXHIBITS) - names == {"headline"}


@pytest.mark.skipif(not DOCS.exists(), reason="the pages are not here")
@pytest.mark.parametrize("name", QUICK)
def test_page_says_what_the_code_says(name):
    page = (DOCS / "paper.md").read_text()
    found = re.search(rf"<!-- begin {name} -->\n(.*?)<!-- end {name} -->", page, re.DOTALL)
    assert found[1] == section(exhibit(name))


def test_a_page_that_is_there_keeps_the_sections_that_are_not_asked_for(tmp_path):
    write_page([exhibit("table1")], tmp_path)
    (tmp_path / "kept").mkdir()
    shutil.copy(tmp_path / "paper.md", tmp_path / "kept")
    written = write_page([exhibit("fig10")], tmp_path / "kept")
    assert [path.name for path in written] == ["paper.md", "fig10.png"]
    page = (tmp_path / "kept" / "paper.md").read_text()
    assert section(exhibit("table1")) in page
    assert section(exhibit("fig10")) in page
    assert "<!-- begin table5 -->\n<!-- end table5 -->" in page


# -- the command -----------------------------------------------------------------------------------


def test_command_prints_what_is_asked_for_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["paper", "fig10", "table1"])
    assert result.exit_code == 0
    assert result.output.index("Table 1: ") < result.output.index("Figure 10: ")
    assert re.search(r"ResNet101, memory +401\.000 +406\.125 +\+5\.125", result.output)
    assert not list(tmp_path.iterdir())


def test_command_writes_page_and_plots(tmp_path):
    result = CliRunner().invoke(main, ["paper", "table1", "fig2", "--out", str(tmp_path / "new")])
    assert result.exit_code == 0
    assert sorted(path.name for path in (tmp_path / "new").rglob("*.*")) == ["fig2.png", "paper.md"]
    assert (tmp_path / "new" / "paper" / "fig2.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_no_table_or_figure_is_refused_in_one_sentence():
    result = CliRunner().invoke(main, ["paper", "fig9"])
    assert result.exit_code == 2
    assert "no table or figure 'fig9'; there are: table1, " in result.output
    assert "Traceback" not in result.output


def test_a_folder_that_cannot_be_made_is_refused_before_anything_is_computed(tmp_path):
    (tmp_path / "file").write_text("")
    result = CliRunner().invoke(main, ["paper", "table1", "--out", str(tmp_path / "file" / "docs")])
    assert result.exit_code == 2
    assert result.output.count("\n") == 1
    assert "cannot be written into: Not a directory" in result.output


def test_without_matplotlib_a_page_is_refused_and_tables_are_printed(tmp_path, monkeypatch):
    from superneurons.studies.paper import plots

    monkeypatch.setattr(plots, "find_spec", lambda name: None)
    result = CliRunner().invoke(main, ["paper", "table1", "--out", str(tmp_path)])
    assert (result.exit_code, result.output.count("\n")) == (2, 1)
    assert "superneurons[plot]" in result.output
    assert CliRunner().invoke(main, ["paper", "table1"]).exit_code == 0
