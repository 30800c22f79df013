"""A run as Python and notebooks see it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raymb.errors import RunDirError
from raymb.run.directory import RunDir, read_object
from raymb.spec import RunSpec, spec_from_json
from raymb.storage.remote import Remote, is_uri, storage_root
from raymb.telemetry.fetched import run_here

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame

    from raymb.inference.generate import Question

_CURVES = ("train", "validation", "test")
"""Kinds of records that have a loss."""


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
        from raymb.inference.engine import Sampling
        from raymb.inference.engines import each_engine
        from raymb.inference.generate import PromptFormat, answers_of
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
        sampling = Sampling(max_new_tokens, temperature, top_p, seed)
        settings = chosen_engine(engine, model, console, batch_size=batch_size)
        engines = each_engine(model, form.tokenizer, False, settings, console)
        (answers,) = [answers_of(name, tuned, form, prompts, sampling, console) for name, tuned in engines]
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
