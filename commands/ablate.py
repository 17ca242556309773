"""The command that asks one question of a step by varying one thing."""

import click


@click.command()
@click.argument("name", required=False)
@click.argument("trace", required=False)
@click.option("--machine", default="k40c", show_default=True, help="A name or file, with figures.")
@click.option("--budget", help="Bound the device memory: 6GiB")
def ablate(name: str | None, trace: str | None, machine: str, budget: str | None) -> None:
    """Vary one thing, NAME, and say what becomes of a step, TRACE or the ablation's own.

    Without a name the ablations are listed.
    """
    from ..notation import parse_bytes
    from ..reports import print_table
    from ..studies.ablation import ABLATIONS, find_ablation
    from ..studies.ablation import ablate as vary

    if name is None:
        width = max(map(len, ABLATIONS))
        for each, ablation in ABLATIONS.items():
            click.echo(f"{each:{width}}  {ablation.question}")
        return
    found = find_ablation(name)
    limit = None if budget is None else parse_bytes(budget)
    variants = dict(vary(found, trace or found.trace, machine, limit))
    some = next(iter(found.policies.values())) if len(found.policies) == 1 else "several policies"
    click.echo(f"{found.question} {trace or found.trace} on {machine}, {some}")
    print_table(list(variants.values()), list(variants))
