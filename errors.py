"""Everything that this package raises on purpose.

SuperneuronsError
    InvalidInput            a file, a name or a parameter that cannot be used
        UnknownName         a name that nothing has; the message lists what exists
        InvalidTrace        a trace that contradicts itself
        InvalidMachine      a machine file that lacks a figure or has a wrong one
        InvalidSchedule     a schedule file that cannot be read or is of another trace
        MissingExtra        an optional library is not installed
    IllegalSchedule         a schedule that breaks a rule of the checker
    PolicyFailed            a policy raised, or returned something that is no schedule
    DoesNotFit              no schedule at all can run in these bytes

Each message is one sentence or two: what was asked, what was there, what to do.
"""


class SuperneuronsError(Exception):
    """The base of every error that is meant for the user."""


class InvalidInput(SuperneuronsError):
    """A file, a name or a parameter that cannot be used."""


class UnknownName(InvalidInput):
    """A name that nothing has."""


class InvalidTrace(InvalidInput):
    """A trace that contradicts itself; the message gives the path to the fault."""


class InvalidMachine(InvalidInput):
    """A machine file that lacks a figure or has a wrong one."""


class InvalidSchedule(InvalidInput):
    """A schedule file that cannot be read, or that was made for another trace."""


class MissingExtra(InvalidInput):
    """An optional library is not installed."""


class Unsupported(InvalidInput):
    """A step does what a recording cannot express: the message names the operation."""


class IllegalSchedule(SuperneuronsError):
    """A schedule breaks a rule: the message names instruction, storage and rule.

    *rule* is the rule's short name and *position* the index of the instruction; a checker
    that has come to the end of the schedule gives the number of instructions.
    """

    def __init__(self, rule: str, position: int, sentence: str) -> None:
        super().__init__(rule, position, sentence)
        self.rule = rule
        self.position = position

    def __str__(self) -> str:
        rule, position, sentence = self.args
        return f"instruction {position}: {sentence} (rule: {rule})"


class PolicyFailed(SuperneuronsError):
    """A policy raised, or returned something that is no schedule."""


class DoesNotFit(SuperneuronsError):
    """No schedule at all can run in these bytes."""
