"""`raymb generate`: what a tuned model generates, and what its base does."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from raymb.data.encode import Encoder
from raymb.data.instructions import worded
from raymb.data.settings import Settings
from raymb.data.shapes import Shape
from raymb.errors import DataError, SpecError
from raymb.inference.choice import chosen_engine
from raymb.inference.engine import TUNED, Engine, Sampling
from raymb.inference.engines import all_engines, each_engine
from raymb.inference.transformers_engine import Transformers
from raymb.inference.tuned_model import TunedModel

Question = str | list[dict[str, Any]]
"""A text, or the messages of a conversation."""


class PromptFormat:
    """Turns questions into prompts of the form that the model was tuned with, and tokens into text.

    Args:
        chat: put questions into the chat template; None: as the training rows were, and without a run if there is one.
        system: the conversation's first message; None: the one that the training rows were given, if any.
    """

    def __init__(self, model: TunedModel, chat: bool | None = None, system: str | None = None):
        self.encoder = Encoder(_settings(model))
        self.tokenizer = self.encoder.tokenizer
        self.system, self.wording = system, model.data.get("wording", "prompt")
        template = bool(self.tokenizer.chat_template)
        if chat and not template:
            raise SpecError(f"--chat: {model.path} has no chat template", "leave --chat out")
        self.chat = template and not model.data.get("pairs") if chat is None else chat
        if system is not None and not self.chat:
            raise SpecError("--system is a message, and this model is prompted without a chat template", "leave it out")

    def tokens(self, question: Question) -> list[int]:
        if not self.chat:
            if not isinstance(question, str):
                raise DataError("messages need a chat template, and this model is prompted without one", "add --chat")
            return self.encoder.tokens_of_prompt(worded(question, self.wording))
        messages = [{"role": "user", "content": question}] if isinstance(question, str) else question
        system = self.system
        if system is None and messages[0].get("role") not in ("system", "developer"):
            system = self.encoder.settings.system_prompt
        before = [] if system is None else [{"role": "system", "content": system}]
        return self.encoder.tokens_of_messages([*before, *messages])

    def text(self, tokens: list[int]) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=True).strip()


def _settings(model: TunedModel) -> Settings:
    former = model.data.get("key", {}).get("settings", {})
    names = ("system_prompt", "chat_template_kwargs", "keep_reasoning", "day")
    alike = {name: former[name] for name in names if name in former}
    shape = Shape(**former.get("shape", {}))
    has_tokenizer = not model.adapter or Path(model.path, "tokenizer_config.json").exists()
    path = model.path if has_tokenizer else model.base_files()
    return Settings(path, model.trust_remote_code, None, shape, "assistant", sys.maxsize, "truncate", **alike)


def read_questions(file: Path) -> list[Question]:
    """The questions of a file: a line each, or with .jsonl a text, {"prompt": text} or {"messages": [...]} each.

    Raises:
        DataError: it cannot be read, or a line is none of these.
    """
    try:
        lines = file.expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--prompts {file}: cannot be read ({error})") from None
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not numbered:
        raise DataError(f"--prompts {file}: there is no prompt in it")
    if file.suffix != ".jsonl":
        return [line for _, line in numbered]
    return [_question(line, f"--prompts {file}: line {number}") for number, line in numbered]


def _question(line: str, where: str) -> Question:
    try:
        content = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: not valid JSON ({error})") from None
    asked = content.get("prompt", content.get("messages")) if isinstance(content, dict) else content
    if isinstance(asked, str) or (isinstance(asked, list) and asked and all(isinstance(one, dict) for one in asked)):
        return asked
    raise DataError(f'{where}: {line[:80]} is neither a text, {{"prompt": text}} nor {{"messages": [...]}}')


def answers_of(
    name: str,
    engine: Engine,
    prompt_format: PromptFormat,
    prompts: Sequence[list[int]],
    sampling: Sampling,
    console: Console,
) -> list[str]:
    """What a model answers, with a progress bar for more than one prompt."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=len(prompts) == 1) as progress:
        task = progress.add_task(f"{name} model answers", total=len(prompts))
        tokens = engine.generate(prompts, sampling, lambda count: progress.advance(task, count))
    return [prompt_format.text(one) for one in tokens]


def generate(
    model: TunedModel,
    questions: list[Question] | None,
    sampling: Sampling,
    *,
    compare: bool,
    engine: str,
    num_gpus: int | None = None,
    chat: bool | None,
    system: str | None,
    batch_size: int,
    output: Path | None,
    console: Console,
) -> None:
    """Print or write the answers of a tuned model.

    Args:
        questions: None begins a conversation with who sits at the terminal.
        compare: answer with the base model, too.
        output: JSON lines instead of text for people.
        console: for what is not an answer.
    """
    prompt_format = PromptFormat(model, chat, system)
    if output is not None and output.exists():
        raise SpecError(f"--output {output} exists", "name another file")
    prompts = [prompt_format.tokens(question) for question in questions or []]
    settings = chosen_engine(engine, model, console, num_gpus, batch_size)
    console.print(str(sampling), style="dim", highlight=False, soft_wrap=True)
    if questions is None:
        with all_engines(model, prompt_format.tokenizer, compare, settings, console) as engines:
            converse(engines, prompt_format, sampling, console)
        return
    answers = {
        name: answers_of(name, one, prompt_format, prompts, sampling, console)
        for name, one in each_engine(model, prompt_format.tokenizer, compare, settings, console)
    }
    if output is not None:
        _write(output, questions, answers)
        console.print(f"{len(questions):,} answers in {output}", highlight=False)
    elif len(questions) == 1 and not compare:
        print(answers[TUNED][0])
    else:
        for index, question in enumerate(questions):
            print_answers(question, {name: texts[index] for name, texts in answers.items()}, Console(highlight=False))


def _write(output: Path, questions: list[Question], answers: dict[str, list[str]]) -> None:
    with open(output, "w", encoding="utf-8") as stream:
        for index, question in enumerate(questions):
            asked = {"prompt": question} if isinstance(question, str) else {"messages": question}
            row = {**asked, **{name: texts[index] for name, texts in answers.items()}}
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")


def print_answers(question: Question, answers: dict[str, str], console: Console) -> None:
    """The question above, the models' answers side by side below."""
    asked = question if isinstance(question, str) else str(question[-1].get("content"))
    console.print(Panel(Text(asked), title="prompt", title_align="left"))
    table = Table.grid(expand=True)
    for _ in answers:
        table.add_column(ratio=1)
    table.add_row(*(Panel(Text(answer), title=name, title_align="left") for name, answer in answers.items()))
    console.print(table)


def converse(engines: dict[str, Engine], prompt_format: PromptFormat, sampling: Sampling, console: Console) -> None:
    """Question and answer until the end of input. Each model remembers its own conversation."""
    import readline  # noqa: F401  (editing and history for input())

    at_terminal = sys.stdin.isatty()
    if at_terminal:
        console.print("a question a line; /new forgets the conversation, Ctrl-D ends", style="dim")
    histories: dict[str, list[dict[str, Any]]] = {name: [] for name in engines}
    while True:
        try:
            question = input("> " if at_terminal else "").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if question == "/new":
            histories = {name: [] for name in engines}
        elif question:
            for name, engine in engines.items():
                _reply(name if len(engines) > 1 else "", engine, prompt_format, sampling, histories[name], question)


def _reply(
    name: str,
    engine: Engine,
    prompt_format: PromptFormat,
    sampling: Sampling,
    history: list[dict[str, Any]],
    question: str,
) -> None:
    history.append({"role": "user", "content": question})
    prompt = prompt_format.tokens(history if prompt_format.chat else question)
    if name:
        print(f"[{name}] ", end="", flush=True)
    if isinstance(engine, Transformers):
        from transformers import TextStreamer

        streamer = TextStreamer(prompt_format.tokenizer, skip_prompt=True, skip_special_tokens=True)
        tokens = engine.stream(prompt, sampling, streamer)
    else:
        (tokens,) = engine.generate([prompt], sampling, lambda count: None)
        print(prompt_format.text(tokens))
    history.append({"role": "assistant", "content": prompt_format.text(tokens)})
