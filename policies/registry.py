"""Finding policies: built-ins stand in a dictionary, others come by entry point.

A third-party distribution names its policies in the entry-point group `superneurons.policies`; the
value is a callable whose parameters are the policy's (a frozen dataclass, say).
"""

from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Final

from ..errors import PolicyFailed, SuperneuronsError, UnknownName
from ..notation import Call, build, parse_call
from .base import Component, Policy
from .baseline import Baseline
from .cache import Cache
from .liveness import Liveness
from .offload import Offload
from .recompute import Recompute
from .stack import Stack
from .superneurons import SuperNeurons
from .workspace import Workspace

GROUP: Final = "superneurons.policies"
BUILTIN: Final[dict[str, Callable[..., Policy]]] = {
    "baseline": Baseline,
    "cache": Cache,
    "liveness": Liveness,
    "offload": Offload,
    "recompute": Recompute,
    "superneurons": SuperNeurons,
    "workspace": Workspace,
}


def policy_names() -> list[str]:
    """Return the names of all policies, built in or installed."""
    return sorted({*BUILTIN, *_installed()})


def policy_maker(name: str) -> Callable[..., Policy]:
    """Return what makes policies called *name*. Raises UnknownName, or PolicyFailed if a plugin
    cannot be loaded."""
    if name in BUILTIN:
        return BUILTIN[name]
    entry = _installed().get(name)
    if entry is None:
        raise UnknownName(f"no policy {name!r}; there are: {', '.join(policy_names())}")
    try:
        maker: Callable[..., Policy] = entry.load()
    except Exception as error:
        raise PolicyFailed(
            f"policy {name!r} of {distribution(name)} cannot be loaded: "
            f"{type(error).__name__}: {' '.join(str(error).split())}"
        ) from error
    if not callable(maker):
        raise PolicyFailed(
            f"policy {name!r} of {distribution(name)} is {maker!r}; an entry point names a class "
            "or function that makes a policy"
        )
    return maker


def find_policy(text: str) -> Policy:
    """Return a policy by name, with parameters, perhaps stacked: `liveness+offload:lookahead=3`.

    Raises UnknownName, InvalidInput for a wrong parameter, PolicyFailed for a broken plugin.
    """
    made = []
    for part in text.split("+"):
        call = parse_call(part)
        maker = policy_maker(call.name)
        made.append((call.name, _make(maker, call)))
    if len(made) == 1:
        return made[0][1]
    components = []
    for name, policy in made:
        if not isinstance(policy, Component):
            raise PolicyFailed(
                f"policy {name!r} of {distribution(name)} plans the whole step and cannot be "
                f"stacked in {text!r}; use it alone"
            )
        components.append(policy)
    return Stack(tuple(components))


def _make(maker: Callable[..., Policy], call: Call) -> Policy:
    try:
        policy = build(maker, call, "policy")
    except SuperneuronsError:
        raise
    except Exception as error:
        raise PolicyFailed(
            f"policy {call.name!r} of {distribution(call.name)} cannot be made: "
            f"{type(error).__name__}: {' '.join(str(error).split())}"
        ) from error
    if isinstance(policy, Component) and policy.name != call.name:
        raise PolicyFailed(
            f"policy {call.name!r} of {distribution(call.name)} calls itself {policy.name!r}; "
            "its name must be the one it is found by"
        )
    return policy


def distribution(name: str) -> str:
    """Return the distribution that a policy comes from, with its version, for messages."""
    if name in BUILTIN:
        return "superneurons"
    entry = _installed().get(name)
    if entry is None or entry.dist is None:
        return "an unknown distribution"
    return f"{entry.dist.name} {entry.dist.version}"


def distribution_of(policy: Policy) -> str:
    """Return where a policy's class comes from, for messages; of a stack, what is not built in."""
    members = policy.components if isinstance(policy, Stack) else (policy,)
    origins = list(dict.fromkeys(_origin(type(member).__module__) for member in members))
    return ", ".join([origin for origin in origins if origin != "superneurons"] or origins)


def _origin(module: str) -> str:
    if module.startswith(__package__.partition(".")[0] + "."):
        return "superneurons"
    for name, entry in _installed().items():
        if entry.module.partition(".")[0] == module.partition(".")[0]:
            return distribution(name)
    return f"module {module}"


def _installed() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}
