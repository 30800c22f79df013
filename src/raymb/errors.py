"""What can go wrong, and who has to act.

RaymbError                 message + hint; the base of everything raymb raises on purpose
 |-- UserError             exit 2: the user's input cannot work; nothing was started
 |    |-- SpecError        a flag, a YAML key or an override is wrong
 |    |-- PlanError        the layout breaks a Megatron rule
 |    |-- ModelError       the model cannot be found, read or used
 |    |-- DataError        the data cannot be found, read or used
 |    |-- RunDirError      the run directory cannot be claimed
 |    `-- ClusterError     the cluster lacks what the plan needs
 `-- RunFailed             exit 1: workers started and the run did not finish
"""

from __future__ import annotations

EXIT_OK, EXIT_FAILED, EXIT_USER, EXIT_INTERRUPTED = 0, 1, 2, 130


class RaymbError(Exception):
    """An error with one readable message and, where one is known, the way out.

    Args:
        message: what is wrong: the values and the rule they break.
        hint: what to do about it, naming the flag to change.
    """

    exit_code = EXIT_FAILED

    def __init__(self, message: str, hint: str = ""):
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message


class UserError(RaymbError):
    exit_code = EXIT_USER


class SpecError(UserError):
    pass


class PlanError(UserError):
    """One or more broken layout rules, all at once.

    Args:
        problems: one sentence each, with the values, the rule and the flag.
    """

    def __init__(self, problems: list[str]):
        self.problems = problems
        count = "1 rule is broken" if len(problems) == 1 else f"{len(problems)} rules are broken"
        super().__init__(f"this layout cannot train, {count}:\n" + "\n".join(f"  - {text}" for text in problems))


class ModelError(UserError):
    pass


class DataError(UserError):
    pass


class RunDirError(UserError):
    pass


class ClusterError(UserError):
    pass


class RunFailed(RaymbError):
    pass
