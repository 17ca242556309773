"""The command line as tests call it: what it prints, or the one sentence that refuses."""

from click.testing import CliRunner, Result

from superneurons.cli import main


def run(*arguments: str) -> Result:
    """Run the command line here; an exception that it lets through fails the test."""
    return CliRunner().invoke(main, list(arguments), catch_exceptions=False)


def succeed(*arguments: str) -> str:
    """Return what a command prints that has nothing to complain about."""
    result = run(*arguments)
    assert (result.exit_code, result.stderr) == (0, "")
    return result.stdout


def refuse(*arguments: str) -> str:
    """Return the one sentence with which a command is refused."""
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("superneurons: ")
    return line.removeprefix("superneurons: ")
