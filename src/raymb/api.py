"""raymb from Python and notebooks: finetune, plan and Run. The command line's flags are keyword arguments here, and go
the same way: load_spec, preflight, raymb.launch.

May import every package but the command line.
"""

from __future__ import annotations

import contextlib
import html
import inspect
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raymb.errors import EXIT_INTERRUPTED, RunDirError, RunFailed, SpecError
from raymb.model.shape import ModelShape
from raymb.plan import Plan
from raymb.run.directory import RunDir, read_object
from raymb.spec import SECTION_OF_FLAG, SECTIONS, RunSpec, load_spec, spec_from_json
from raymb.spec.names import FLAG_OF_SHORT, unknown_flag
from raymb.storage.remote import Remote, is_uri, storage_root
from raymb.telemetry.fetched import run_here

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame

    from raymb.inference.generate import Question

Config = str | Path | Mapping[str, Any] | RunSpec
"""A YAML file, a run's spec.json, its sections as a mapping, or the spec of another run."""
_CURVES = ("train", "validation", "test")
"""Kinds of records that have a loss."""


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
    from raymb.driver.preflight import preflight, run_name
    from raymb.driver.ray_start import prepare_environment
    from raymb.telemetry.notebook import console_for_people

    prepare_environment()
    spec = _spec(flags, config, overrides, "finetune")
    checked = preflight(spec, console_for_people())
    place = RunDir.of(checked.spec, run_name(checked))
    where = place.remote.url if place.remote else place.path
    from raymb.launch import run as launched  # imports Ray, which a refusal need not wait for

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


class Planned:
    """A plan that shows itself as a table. It has the attributes of raymb.plan.layout.Plan: layout, memory (bytes a
    GPU), step_time (seconds), chosen, to_dict() and the rest.

    Args:
        spec: what was asked for.
    """

    def __init__(self, plan: Plan, shape: ModelShape, spec: RunSpec):
        self.plan, self.shape, self.spec = plan, shape, spec

    def __getattr__(self, name: str) -> Any:
        if name == "plan":  # of an object that is just being unpickled
            raise AttributeError(name)
        return getattr(self.plan, name)

    def __str__(self) -> str:
        from rich.console import Console

        from raymb.plan.table import plan_table

        text = io.StringIO()
        width = Console().width  # the terminal's
        plain: dict[str, Any] = {"markup": False, "highlight": False, "force_jupyter": False, "force_terminal": False}
        console = Console(file=text, width=width, **plain)
        console.print(plan_table(self.plan, self.shape, self.spec))
        return "\n".join(line.rstrip() for line in text.getvalue().splitlines())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from raymb.plan.table import table_rows

        left = ' style="text-align: left"'
        rows = (
            f"<tr><th{left}>{html.escape(name)}</th><td{left}>{html.escape(text)}</td></tr>"
            for name, text in table_rows(self.plan, self.shape, self.spec)
        )
        return f"<table>{''.join(rows)}</table>"


class Run:
    """A run that has finished, failed, or is training: what its directory says now, each time it is asked.

    Args:
        path: the run directory, or its URI: STORAGE_PATH/EXPERIMENT_NAME.

    Raises:
        RunDirError: there is no run.
    """

    def __init__(self, path: str | Path):
        self.path: Path | str = str(path).rstrip("/") if is_uri(path) else Path(path).expanduser().absolute()
        with self._here() as here:
            if not (here / "spec.json").is_file():
                raise RunDirError(
                    f"{path} is no run directory: it has no spec.json", "give STORAGE_PATH/EXPERIMENT_NAME"
                )

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}): {self.state}"

    @property
    def state(self) -> str:
        """running, finished, failed, stopped (max_time), interrupted, killed or unknown, as `raymb runs` shows it."""
        from raymb.telemetry.run_record import read_run

        with self._here() as here:
            return read_run(here, str(self.path), recent_only=True).state

    @property
    def spec(self) -> RunSpec:
        """What was asked for, resolved; finetune takes it as config."""
        with self._here() as here:
            return spec_from_json((here / "spec.json").read_text(encoding="utf-8"))

    @property
    def metrics(self) -> DataFrame:
        """A row for each train step, validation and test, with the fields of metrics.jsonl, in its order."""
        from pandas import DataFrame, to_numeric

        from raymb.telemetry.sinks import read_metrics

        with self._here() as here:
            records = [one for one in read_metrics(here / "metrics.jsonl") if one["kind"] in _CURVES]
        frame = DataFrame.from_records(records, columns=None if records else ["kind", "step", "loss"])
        numbers = frame.columns.drop("kind")
        return frame.assign(**{name: to_numeric(frame[name]) for name in numbers})  # None where not finite

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the loss against steps: a line for training, dots for validations and tests.

        Args:
            ax: matplotlib's axes to draw into, such as those of another run; None makes a figure.
        """
        if ax is None:
            from matplotlib import pyplot

            ax = pyplot.subplots(figsize=(6.4, 3.6), layout="constrained")[1]
        metrics, name = self.metrics, str(self.path).rpartition("/")[2]
        for kind in _CURVES:
            curve = metrics[metrics["kind"] == kind]
            if len(curve):
                form: dict[str, Any] = {} if kind == "train" else {"marker": "o", "linestyle": "none"}
                ax.plot(curve["step"], curve["loss"], label=f"{name} {kind}", **form)
        ax.set(xlabel="step", ylabel="loss (nats a token)")
        ax.legend()
        return ax

    @property
    def best_checkpoint(self) -> Path | str | None:
        """The directory, or URI, of the checkpoint with the best metric (best_metric); None where none has one."""
        from raymb.checkpoints import manifest
        from raymb.checkpoints.remote import RemoteCheckpoints

        place = self._place()
        there = RemoteCheckpoints.of_run(place)
        step = manifest.best_of((there or manifest).whole(place.checkpoints))
        if step is None:
            return None
        directory = Path(manifest.iteration_dir(place.checkpoints, step))
        return directory if there is None else f"{self.path}/checkpoints/{directory.name}"

    @property
    def exported(self) -> Path | str | None:
        """The tuned model as Hugging Face files: hf/, or adapter/ where there is no other; None before the export."""
        for name, file in (("hf", "config.json"), ("adapter", "adapter_config.json")):
            if isinstance(self.path, Path):
                if (self.path / name / file).is_file():
                    return self.path / name
            elif self._remote().exists(f"{name}/{file}"):
                return f"{self.path}/{name}"
        return None

    def generate(
        self,
        prompt: Question | Sequence[Question],
        *,
        system: str | None = None,
        chat: bool | None = None,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 1234,
        engine: str = "auto",
        batch_size: int = 8,
        trust_remote_code: bool = False,
    ) -> Any:
        """The tuned model's answer in this process, as `raymb generate` gives it. Each call loads the model: give many
        prompts at once.

        Args:
            prompt: a text, or the messages of a conversation; a list of these is answered by a list.

        Raises:
            RunDirError: the run has exported nothing, or lies at a URI.
        """
        from raymb.inference.choice import chosen_engine
        from raymb.inference.engines import TUNED, Sampling, open_engines
        from raymb.inference.generate import PromptFormat, generate_all
        from raymb.inference.tuned_model import find_tuned_model
        from raymb.telemetry.notebook import console_for_people

        if isinstance(self.path, str):
            raise RunDirError(
                f"{self.path}: a model at a URI is not loaded from there",
                "copy its hf/ or adapter/ to this machine and run raymb generate DIRECTORY",
            )
        one = isinstance(prompt, str) or (bool(prompt) and isinstance(prompt[0], Mapping))
        questions: list[Any] = [prompt] if one else list(prompt)
        console = console_for_people()
        model = find_tuned_model(str(self.path), None, trust_remote_code)
        form = PromptFormat(model, chat, system)
        prompts = [form.tokens(question) for question in questions]
        engines = open_engines(model, form.tokenizer, False, chosen_engine(engine, model, console), batch_size)
        sampling = Sampling(max_new_tokens, temperature, top_p, seed)
        answers = generate_all(engines, form, prompts, sampling, console)[TUNED]
        return answers[0] if one else answers

    @contextlib.contextmanager
    def _here(self) -> Iterator[Path]:
        with run_here(str(self.path)) as here:
            yield here

    def _remote(self) -> Remote:
        remote = Remote.of(str(self.path))
        assert remote is not None  # a URI
        return remote

    def _place(self) -> RunDir:
        """The run's paths; at a URI, of the directory that stands for it on this machine."""
        elsewhere = self.spec.checkpoint.output_dir
        if isinstance(self.path, Path):
            job = read_object(self.path / "job.json") or {}
            checkpoints = Path(job["checkpoint_dir"]) if elsewhere and "checkpoint_dir" in job else None
            return RunDir(self.path, checkpoints or self.path / "checkpoints")
        storage, _, name = self.path.rpartition("/")
        path = storage_root(storage) / name
        return RunDir(path, elsewhere or path / "checkpoints", self._remote())


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
