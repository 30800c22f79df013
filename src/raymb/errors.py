"""What can go wrong, and who has to act.

RaymbError                 message + hint; the base of everything raymb raises on purpose
 |-- UserError             exit 2: the user's input cannot work; nothing was started
 |    |-- SpecError        a flag, a YAML key or an override is wrong
 |    |-- PlanError        the layout breaks a Megatron rule
 |    |-- ModelError       the model cannot be found, read or used
 |    |    `-- ModelOutOfReach   it may be on the hub, which does not answer here
 |    |-- DataError        the data cannot be found, read or used
 |    |    `-- DataOutOfReach    the same of a data set
 |    |-- RunDirError      the run directory cannot be claimed
 |    |-- ClusterError     the cluster lacks what the plan needs
 |    `-- SubmitError      a job's files cannot be written, or the target's client does not take them
 |-- RunFailed             exit 1: workers started and the run did not finish
 |    `-- OutOfGpuMemory   in the driver: before the first checkpoint, so that another layout may be tried
 |-- StorageError          exit 1: the storage at the URI of --storage_path fails or is out of reach
 |-- BadLoss               on a worker: NaN, or a spike of the loss
 `-- WorkersStopped        on a worker: left with a checkpoint, to be started again
"""

from __future__ import annotations

from typing import Any

from raymb.credentials import redacted

EXIT_OK, EXIT_FAILED, EXIT_USER, EXIT_STOPPED, EXIT_INTERRUPTED = 0, 1, 2, 75, 130


class RaymbError(Exception):
    """An error with one readable message and, where one is known, the way out.

    Args:
        message: what is wrong: the values and the rule they break.
        hint: what to do about it, naming the flag to change.
    """

    exit_code = EXIT_FAILED

    def __init__(self, message: str, hint: str = ""):
        message, hint = redacted(message), redacted(hint)
        super().__init__(message, hint)  # both, so that it can be pickled
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

    def __reduce__(self) -> tuple[type, tuple[list[str]]]:
        return type(self), (self.problems,)


class ModelError(UserError):
    pass


class ModelOutOfReach(ModelError):
    pass


class DataError(UserError):
    pass


class DataOutOfReach(DataError):
    pass


class RunDirError(UserError):
    pass


class ClusterError(UserError):
    pass


class SubmitError(UserError):
    pass


class RunFailed(RaymbError):
    """
    Attributes:
        run: the raymb.Run that failed, where raymb.finetune was called and the run's directory is there.
    """

    run: Any = None


class OutOfGpuMemory(RunFailed):
    pass


class WorkersStopped(RaymbError):
    """The workers have stopped after a checkpoint and want to be started again; not a failure.

    Args:
        reason: preemption, or resize.
        step: the last finished step.
    """

    def __init__(self, reason: str, step: int):
        super().__init__(f"stopped after step {step} for {reason}")
        self.reason, self.step = reason, step

    def __reduce__(self) -> tuple[type, tuple[str, int]]:
        return type(self), (self.reason, self.step)


class BadLoss(RaymbError):
    """A step's loss is NaN or a spike.

    Args:
        step: the step.
        description: what is bad about it.
    """

    def __init__(self, step: int, description: str):
        super().__init__(
            f"step {step}: {description}",
            "look at the batch (raymb data inspect) and the learning rate; --bad_loss skip leaves such a step out, "
            "--bad_loss rollback goes back to the checkpoint before",
        )
        self.step, self.description = step, description

    def __reduce__(self) -> tuple[type, tuple[int, str]]:
        return type(self), (self.step, self.description)


class StorageError(RaymbError):
    pass


def last_line(error: object) -> str:
    """What an exception says, or the line of a traceback that says it: the last one that is not indented."""
    lines = [line for line in str(error).strip().splitlines() if line.strip() and not line.startswith(" ")]
    return lines[-1] if lines else type(error).__name__
