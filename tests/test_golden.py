"""Exact numbers. To see what the code says now: `python tests/golden.py`."""

import golden
import pytest

FIG10 = golden.FOLDER / "fig10.txt"


@pytest.mark.parametrize("name", golden.TABLES)
def test_table_is_as_committed(name):
    assert (
        golden.printed(name).splitlines()
        == (golden.FOLDER / f"{name}.txt").read_text().splitlines()
    )


def test_baseline_is_36_tensors_and_2189_437_mib():
    report = golden.report("baseline")
    assert report.ops == 46
    assert golden.mib(report.step_peak_bytes) == "2189.437"
    assert report.step_peak_live_tensors == 36


@pytest.mark.parametrize(
    ("policy", "peak", "step", "tensors"),
    [
        ("liveness", "1489.355", 32, 17),
        ("liveness+offload:release=immediate", "1132.056", 39, 9),
        ("superneurons", "886.230", 44, 4),
    ],
)
def test_peak_of_each_curve_is_where_the_paper_has_it(policy, peak, step, tensors):
    report = golden.report(policy)
    assert golden.mib(report.step_peak_bytes) == peak
    assert report.op_names.index(report.step_peak_op) + 1 == step
    assert report.step_peak_live_tensors == tensors


@pytest.mark.parametrize(
    ("strategy", "recomputed", "peak"),
    [("speed", 14, "993.018"), ("memory", 23, "886.230"), ("cost", 17, "886.230")],
)
def test_table_1_row_of_alexnet(strategy, recomputed, peak):
    report = golden.report(f"liveness+recompute:strategy={strategy}")
    assert report.recomputed_ops == recomputed
    assert golden.mib(report.step_peak_bytes) == peak


def test_strict_peak_of_superneurons_is_its_step_peak():
    report = golden.report("superneurons")
    assert report.strict_peak_bytes == report.step_peak_bytes
    assert report.copied_out_bytes == report.copied_in_bytes == 0


def test_immediate_release_waits_for_its_copies_and_arrival_does_not():
    immediate = golden.report("liveness+offload:release=immediate")
    arrival = golden.report("liveness+offload")
    assert immediate.stall_ns >= 0.9 * immediate.copy_out_ns
    assert arrival.stall_ns == 0
    assert arrival.step_peak_bytes == immediate.step_peak_bytes
