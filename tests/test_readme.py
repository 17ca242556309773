"""Every command that README and docs show prints what they show."""

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from superneurons.cli import main

# The tests may run beside an installed wheel, away from the papers.
ROOT = Path(__file__).parent.parent
PAPERS = sorted({*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")})
BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def shown():
    """Yield each command that a paper shows, with the output below it."""
    for paper in PAPERS:
        for block in BLOCK.findall(paper.read_text()):
            for session in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
                command, _, output = session.partition("\n")
                yield pytest.param(command, output, id=f"{paper.name}: {command[:60]}")


@pytest.mark.parametrize(("command", "output"), list(shown()))
def test_command_prints_what_is_shown(command, output, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    program, *arguments = shlex.split(command)
    assert program == "superneurons"
    result = CliRunner().invoke(main, arguments)
    printed = [line.rstrip() for line in result.output.splitlines()]
    assert [line for line in printed if line] == [line for line in output.splitlines() if line]
