"""The execution route: in which order the layers of a graph run (the paper's Algorithm 1)."""

from collections.abc import Mapping, Sequence


def execution_route(successors: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the order in which a depth-first walk with join counters visits every layer.

    *successors* lists, for each layer, those that read its output, in their order. A layer with
    several predecessors is visited when the last of them has been; successors are then followed
    in list order. The backward route is the same on reversed edges.
    """
    predecessors = dict.fromkeys(successors, 0)
    for following in successors.values():
        for layer in following:
            predecessors[layer] += 1
    waiting = dict(predecessors)
    route: list[str] = []
    stack = [layer for layer in reversed(list(successors)) if predecessors[layer] == 0]
    while stack:
        layer = stack.pop()
        if waiting[layer] > 1:  # a join: the last branch to arrive goes on
            waiting[layer] -= 1
            continue
        route.append(layer)
        stack.extend(reversed(successors[layer]))
    return route
