"""raymb from Python and notebooks: finetune, plan and Run. The command line's flags are keyword arguments here, and go
the same way: load_spec, preflight, raymb.launch.

May import every package but the command line.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raymb.api.planned import Planned
from raymb.api.run import Run
from raymb.errors import EXIT_INTERRUPTED, RunDirError, RunFailed, SpecError
from raymb.run.directory import RunDir
from raymb.spec import SECTION_OF_FLAG, SECTIONS, RunSpec, load_spec
from raymb.spec.names import FLAG_OF_SHORT, unknown_flag

Config = str | Path | Mapping[str, Any] | RunSpec
"""A YAML file, a run's spec.json, its sections as a mapping, or the spec of another run."""


class RunInterrupted(KeyboardInterrupt):
    """The run was interrupted, and has written a checkpoint if it had begun to train.

    Args:
        run: resumes where the same call is made again.
    """

    def __init__(self, run: Run):
        super().__init__(f"{run.path} was interrupted; the same call resumes it")
        self.run = run


def finetune(
    *, config: Config | Sequence[Config] = (), overrides: Sequence[str] | Mapping[str, Any] = (), **flags: Any
) -> Run:
    """Fine-tune a model, and return the run when it has finished, or stopped at max_time (its state tells).

    A Ray that is connected is used, and stays. Ctrl-C, or a notebook's interrupt, asks for a last checkpoint first.

    Args:
        config: YAML files or mappings of sections; a later one wins.
        overrides: other fields of Bridge's ConfigContainer: words such as "optimizer.decoupled_lr=1e-4", or a mapping.
        flags: those of `raymb finetune`, which win over config.

    Raises:
        RaymbError: the input cannot work; as the command line says it.
        RunFailed: workers started and did not finish; its `run` is what there is.
        RunInterrupted: after the last checkpoint.
    """
    from raymb.driver.ahead import import_ray
    from raymb.driver.preflight import preflight, run_name
    from raymb.driver.ray_start import prepare_environment
    from raymb.telemetry import startup
    from raymb.telemetry.notebook import console_for_people

    startup.command_begins(time.time())
    prepare_environment()
    spec = _spec(flags, config, overrides, "finetune")
    checked = preflight(spec, console_for_people(), beside_rows=import_ray)
    place = RunDir.of(checked.spec, run_name(checked))
    where = place.remote.url if place.remote else place.path
    from raymb.launch import run as launched

    try:
        code = launched(checked)
    except RunFailed as error:
        with contextlib.suppress(RunDirError):
            error.run = Run(where)
        raise
    if code == EXIT_INTERRUPTED:
        raise RunInterrupted(Run(where))
    return Run(where)


def plan(
    *, config: Config | Sequence[Config] = (), overrides: Sequence[str] | Mapping[str, Any] = (), **flags: Any
) -> Planned:
    """How the workers would share the work, their memory and speed, from config.json alone; nothing is started.

    Args:
        config, overrides, flags: as of finetune.

    Raises:
        RaymbError: every rule that the layout breaks, or what else is wrong.
    """
    from raymb.driver.preflight import checked_shape, local_backend, local_gpu
    from raymb.plan import make_plan

    spec = _spec(flags, config, overrides, "plan")
    shape = checked_shape(spec, "config")
    return Planned(make_plan(spec, shape, backend=local_backend(spec), gpu=local_gpu(spec)), shape, spec)


def _spec(
    flags: Mapping[str, Any],
    config: Config | Sequence[Config],
    overrides: Sequence[str] | Mapping[str, Any],
    command: str,
) -> RunSpec:
    """The spec of keyword arguments, with the command line's messages."""
    from raymb.recipes import values_below
    from raymb.telemetry.notebook import console_for_people

    known = [*SECTION_OF_FLAG, *FLAG_OF_SHORT]
    for name in flags:
        if name not in known:
            raise SpecError(unknown_flag(f"--{name}", [*known, "config"]), f"see: raymb {command} --help")
    given: dict[str, Any] = {}
    for name, value in flags.items():
        flag = FLAG_OF_SHORT.get(name, name)
        if value is not None and flag in given:
            raise SpecError(f"{name} and {flag} are two spellings of --{flag}", "give one of them")
        if value is not None and value != []:
            given[flag] = _plain(value)
    sources = [config] if isinstance(config, str | Path | Mapping | RunSpec) else list(config)
    words = [overrides] if isinstance(overrides, str) else overrides
    if isinstance(words, Mapping):
        words = [f"{path}={json.dumps(_plain(value))}" for path, value in words.items()]
    console = console_for_people()
    return load_spec(
        given,
        [_source(one) for one in sources],
        list(words),
        recipe=values_below,
        say=lambda line: console.print(line, highlight=False, soft_wrap=True, markup=False),
    )


def _source(one: Config) -> Path | Mapping[str, Any]:
    if isinstance(one, RunSpec):
        return one.model_dump(mode="json")
    return _plain(one) if isinstance(one, Mapping) else Path(one)


def _plain(value: Any) -> Any:
    """A value of Python's as YAML would give it: paths as text, tuples as lists."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


def _with_flags(function: Any) -> None:
    """Have a notebook complete the flags, and show their kinds of values, as if each were written in the signature."""
    own = [one for one in inspect.signature(function).parameters.values() if one.name != "flags"]
    fields = [(flag, field) for section in SECTIONS.values() for flag, field in section.model_fields.items()]
    flags = [
        inspect.Parameter(flag, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=field.annotation)
        for flag, field in fields
    ]
    function.__signature__ = inspect.Signature([*flags, *own], return_annotation=function.__annotations__["return"])


for _function in (finetune, plan):
    _with_flags(_function)
