"""Ablations: one question each, asked of a step by varying one thing."""

from collections.abc import Iterator
from typing import Final

from msgspec import Struct

from ..errors import UnknownName
from ..machines import find_machine
from ..notation import parse_call
from ..policies import find_policy
from ..reports import Report
from ..sim import simulate
from ..traces import find_trace

_EAGER: Final = "liveness+offload:release=immediate+recompute"
_LIKELY: Final = "liveness+offload+recompute"
_DEFAULTS: Final = "conv/matmul/attention/embedding/add/fork/concat"


class Ablation(Struct, frozen=True, kw_only=True):
    """A question, the step that it is asked of unless another is given, and what is varied.

    *policies* or *figures* of the machine are the variants by label; the other is one for all.
    """

    question: str
    trace: str
    policies: dict[str, str]
    figures: dict[str, str]


def _policies(question: str, trace: str, variants: dict[str, str]) -> Ablation:
    return Ablation(question=question, trace=trace, policies=variants, figures={"": ""})


def _figures(question: str, trace: str, policy: str, variants: dict[str, str]) -> Ablation:
    return Ablation(question=question, trace=trace, policies={"": policy}, figures=variants)


ABLATIONS: Final = {
    "lookahead": _policies(
        "How early should a prefetch start, in operations?",
        "alexnet:batch=200",
        {f"lookahead={n}": f"liveness+offload:lookahead={n}" for n in (0, 1, 2, 3, 4, 8)},
    ),
    "checkpoints": _policies(
        "Which kinds of operations should be checkpoints, offloaded and not computed again?",
        "resnet50:batch=32",
        {
            label: f"liveness+offload:kinds={kinds}+recompute:kinds={kinds}"
            for label, kinds in {
                "conv": "conv",
                "conv/matmul": "conv/matmul",
                "conv/matmul/add": "conv/matmul/add",
                "the default": _DEFAULTS,
                "the default and norm": f"{_DEFAULTS}/norm",
            }.items()
        },
    ),
    "cache": _policies(
        "Tensor cache or eager offload?",
        "resnet50:batch=140",
        {
            "eager, freed at once": _EAGER,
            "eager, freed on arrival": _LIKELY,
            "tensor cache": "superneurons",
        },
    ),
    "allocator": _figures(
        "What does the allocator take, in bytes and in time?",
        "resnet50:batch=16",
        "superneurons",
        {
            name: f"allocator={name}"
            for name in ("exact", "pool", "cudamalloc", "caching", "caching-expandable")
        },
    ),
    "pages": _figures(
        "Pinned or pageable host memory?",
        "resnet50:batch=32",
        _LIKELY,
        {pages: f"host_pages={pages}" for pages in ("pinned", "pageable")},
    ),
    "link": _figures(
        "How fast must the link to the host be?",
        "resnet50:batch=32",
        _LIKELY,
        {
            f"{rate} GB/s each way": f"device_to_host={rate}GB/s,host_to_device={rate}GB/s"
            for rate in (2, 4, 8, 16, 32, 64)
        },
    ),
}


def find_ablation(name: str) -> Ablation:
    """Return an ablation by its name. Raises UnknownName."""
    if name not in ABLATIONS:
        raise UnknownName(f"no ablation {name!r}; there are: {', '.join(ABLATIONS)}")
    return ABLATIONS[name]


def ablate(
    ablation: Ablation, trace: str, machine: str, budget: int | None = None
) -> Iterator[tuple[str, Report]]:
    """Yield the report of each variant with its label.

    Raises UnknownName or InvalidInput for a trace or machine that is none, or for a figure of the
    machine that is given and varied as well.
    """
    step, given = find_trace(trace), parse_call(machine)
    for policy_label, policy in ablation.policies.items():
        for figure_label, figures in ablation.figures.items():
            on = find_machine(_with(machine, bool(given.parameters), figures))
            report = simulate(step, find_policy(policy), on, budget)
            yield policy_label or figure_label, report


def _with(machine: str, has_figures: bool, figures: str) -> str:
    return f"{machine}{',' if has_figures else ':'}{figures}" if figures else machine
