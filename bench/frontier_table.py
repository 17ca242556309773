"""The table and the plot of what `bench/frontier.py` measured.

    python bench/frontier_table.py frontier.jsonl [--plot frontier.png]

A method is on the front of its model if none is as fast in as little memory. Of each of ours that
is not, the table names what beats it: a rival that is faster at equal or lower peak.
"""

import argparse
import json
from pathlib import Path
from typing import Any

RIVALS = ("plain", "plain again", "checkpoint", "sqrt", "selective", "save_on_cpu", "overlapped")
PEAK = "requested_peak"
EVERYTHING = (
    "conv/matmul/attention/norm/activation/dropout/add/elementwise/pool/embedding/concat/loss"
)
COSTLY = "conv/matmul/attention/embedding/add/fork/concat"  # too long for a legend

Line = dict[str, Any]
Model = tuple[str, int]


def main() -> None:
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--plot", type=Path)
    asked = parser.parse_args()
    models: dict[Model, dict[str, Line]] = {}
    for text in asked.file.read_text().splitlines():
        line = json.loads(text)
        if "method" in line and "batch" in line:  # of a method that ran twice, the last
            models.setdefault((line["model"], line["batch"]), {})[line["method"]] = line
    for model, lines in models.items():
        print_model(model, list(lines.values()))
    if asked.plot:
        plot({model: list(lines.values()) for model, lines in models.items()}, asked.plot)


def print_model(model: Model, lines: list[Line]) -> None:
    done = [line for line in lines if "step_ns" in line]
    about = next(iter(done), lines[0])
    print(f"### {model[0]}, batch {model[1]}\n")
    print(f"{about['gpu']}, torch {about['torch']}, {about['date']}.\n")
    print(
        "| method | ms a step | spread | | requested peak, MB | | reserved, MB | pinned, MB "
        "| predicted ms | predicted peak | predicted reserved | late | |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    )
    plain = next((line for line in done if line["method"] == "plain"), None)
    for line in sorted(done, key=lambda line: int(line["step_ns"])):
        print_line(line, plain, done)
    for line in lines:
        if "step_ns" not in line:
            print(f"| {label(line)} | - {'| ' * 11}| {line.get('error', '')} |")
    print(f"\n{verdict(done)}\n")
    for line in done:
        causes = line.get("explained", {}).get("by_cause")
        if causes:
            told = ", ".join(f"{cause} {ns / 1e6:+.1f}" for cause, ns in causes.items() if ns)
            print(f"- {label(line)} beside what was predicted, in ms: {told}")


def print_line(line: Line, plain: Line | None, done: list[Line]) -> None:
    predicted = line.get("predicted", {})
    low, high = line["spread"]
    cells = [
        label(line),
        ms(line["step_ns"]),
        f"{ms(low)} to {ms(high)}, {steps(line)}",
        share(line, plain, "step_ns"),
        mb(line[PEAK]),
        share(line, plain, PEAK),
        mb(line["reserved_peak"]),
        mb(line.get("pinned_nbytes", 0)),
        off(predicted, line, "step_ns", ms),
        off(predicted, line, PEAK, mb),
        off(predicted, line, "reserved_peak", mb),
        str(line.get("late", "")),
        standing(line, done),
    ]
    print(f"| {' | '.join(cells)} |")


def standing(line: Line, done: list[Line]) -> str:
    """Say whether a method is on the front; of one of ours that a rival beats, which one."""
    if line["method"] not in RIVALS:
        found = beaten_by(line, done)
        if found:
            return f"beaten at equal or lower peak by {', '.join(map(label, found))}"
    return "front" if on_front(line, done) else ""


def beaten_by(line: Line, done: list[Line]) -> list[Line]:
    return [
        other
        for other in done
        if other["method"] in RIVALS
        and other[PEAK] <= line[PEAK]
        and other["step_ns"] < line["step_ns"]
    ]


def on_front(line: Line, done: list[Line]) -> bool:
    def better(other: Line) -> bool:
        a, b = (other[PEAK], other["step_ns"]), (line[PEAK], line["step_ns"])
        return a != b and a[0] <= b[0] and a[1] <= b[1]

    return not any(better(other) for other in done)


def verdict(done: list[Line]) -> str:
    """Return which of ours are beaten, and which rivals are by ours, in sentences."""
    ours = [line for line in done if line["method"] not in RIVALS]
    beaten = [
        f"{label(line)} (by {', '.join(map(label, found))})"
        for line in ours
        if (found := beaten_by(line, done))
    ]
    beating = [
        label(line)
        for line in done
        if line["method"] in RIVALS
        and any(o[PEAK] <= line[PEAK] and o["step_ns"] < line["step_ns"] for o in ours)
    ]
    return (
        f"Of ours beaten at equal or lower peak: {', '.join(beaten) or 'none'}. "
        f"Rivals that one of ours beats so: {', '.join(beating) or 'none'}."
    )


# -- cells -----------------------------------------------------------------------------------------


def label(line: Line) -> str:
    policy, _, of_peak = str(line["method"]).partition("@")
    name = f"`{policy.replace(EVERYTHING, 'ALL')}`" if policy not in RIVALS else policy
    return f"{name} in {float(of_peak):.0%} of plain's peak" if of_peak else name


def steps(line: Line) -> str:
    """Return how many steps count, and of how many: not those beside which the host was slow."""
    number = line.get("all", [line["steps"]])[0]
    return f"{line['steps']} steps" + (f" of {number}" if number > line["steps"] else "")


def ms(ns: float) -> str:
    return f"{ns / 1e6:,.1f}"


def mb(nbytes: float) -> str:
    return f"{nbytes / 1e6:,.0f}"


def share(line: Line, plain: Line | None, key: str) -> str:
    if plain is None or plain is line or not plain[key]:
        return ""
    if key == "step_ns" and "slower" in line:  # than the plain step of its own process
        return f"{line['slower']:+.1%}"
    return f"{line[key] / plain[key] - 1:+.1%}"


def off(predicted: Line, line: Line, key: str, unit: Any) -> str:
    if key not in predicted:
        return ""
    measured = line[key]
    told = f"{unit(predicted[key])}"
    return told + (f" ({predicted[key] / measured - 1:+.1%})" if measured else "")


# -- the plot --------------------------------------------------------------------------------------


def plot(models: dict[Model, list[Line]], path: Path) -> None:
    """Draw peak against step time, a row for each model, with the front; methods by number."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4 * len(models)), layout="constrained")
    rows = figure.subplots(len(models), 2, squeeze=False, width_ratios=(1, 1.1))
    for (axes, names), (model, lines) in zip(rows, models.items(), strict=True):
        done = sorted(
            (line for line in lines if "step_ns" in line), key=lambda line: int(line["step_ns"])
        )
        draw_front(axes, done)
        axes.set_title(f"{model[0]}, batch {model[1]}", loc="left", fontsize="medium")
        names.axis("off")
        for k, line in enumerate(done, 1):
            text = label(line).replace("`", "").replace("liveness+", "").replace(COSTLY, "conv/...")
            text = text.replace("+", "\n        +")
            names.text(
                0,
                1 - k / (len(done) + 1),
                f"{k:2}  {text}",
                color="black" if line["method"] in RIVALS else "tab:blue",
                fontsize=7,
                va="center",
                family="monospace",
            )
    rows[0][0].legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=100)


def draw_front(axes: Any, done: list[Line]) -> None:
    points = [(line["step_ns"] / 1e6, line[PEAK] / 1e9) for line in done]
    for ours, color, marker in ((False, "tab:gray", "o"), (True, "tab:blue", "^")):
        here = [
            point
            for point, line in zip(points, done, strict=True)
            if (line["method"] not in RIVALS) is ours
        ]
        name = "ours" if ours else "what users have"
        axes.scatter(*zip(*here, strict=True), color=color, marker=marker, label=name, zorder=3)
    front = [point for point, line in zip(points, done, strict=True) if on_front(line, done)]
    axes.step(*zip(*sorted(front), strict=True), where="post", color="tab:red", lw=1, label="front")
    for k, point in enumerate(points, 1):
        axes.annotate(str(k), point, xytext=(4, 4), textcoords="offset points", fontsize=7)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.xaxis.set_minor_formatter("{x:,.0f}")
    axes.tick_params(axis="x", which="minor", labelsize=6)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("ms a step")
    axes.set_ylabel("requested peak, GB")
    axes.grid(alpha=0.3, which="both")


if __name__ == "__main__":
    main()
