"""Rows of an instruction and its answer: as a conversation for a model with a chat template, else as plain texts.

Alpaca's columns are instruction, input, output, history ([question, answer] pairs) and system; others have question and
answer. The plain texts are those of Stanford Alpaca's own `text` column, and "Question: ...\\nAnswer:".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from raymb.data.row_values import EmptyAnswer, WrongRow, optional_text, shown, text_in

_BELOW = "Below is an instruction that describes a task"
_WITH_INPUT = f"{_BELOW}, paired with an input that provides further context. "
_TASK = "Write a response that appropriately completes the request."


@dataclass(frozen=True)
class Instruction:
    """
    Args:
        system: what comes first; "" for nothing.
        rounds: earlier questions and answers.
        question, given: what is asked, and with which input.
        answer: what is trained.
        style: how it is asked in plain text: "alpaca", "question" or "prompt".
    """

    system: str
    rounds: list[tuple[str, str]]
    question: str
    given: str
    answer: str
    style: str

    def as_messages(self) -> list[dict[str, Any]]:
        """The conversation; earlier answers are trained, too, as in other tools that read Alpaca's history."""
        asked = "\n".join(filter(None, (self.question, self.given)))
        messages = [{"role": "system", "content": self.system}] if self.system else []
        for question, answer in [*self.rounds, (asked, self.answer)]:
            messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return messages

    def as_texts(self) -> dict[str, str]:
        """Prompt and completion, and the style; earlier rounds are part of the prompt."""
        before = "".join(f"{_asked(self.style, question)}{answer}\n\n" for question, answer in self.rounds)
        preamble = self.system
        if self.style == "alpaca" and not preamble:
            preamble = (_WITH_INPUT if self.given else f"{_BELOW}. ") + _TASK
        head = f"{preamble}\n\n" if preamble else ""
        space = " " if self.style == "question" else ""
        return {
            "prompt": head + before + _asked(self.style, self.question, self.given),
            "completion": space + self.answer,
            **({"style": self.style} if self.style != "prompt" else {}),
        }


def worded(question: str, style: str) -> str:
    """The prompt in plain text that rows of this style have for a question."""
    return Instruction("", [], question, "", "", style).as_texts()["prompt"]


def _asked(style: str, question: str, given: str = "") -> str:
    if style == "prompt":
        return question
    if style == "question":
        return f"Question: {question}\nAnswer:"
    context = f"### Input:\n{given}\n\n" if given else ""
    return f"### Instruction:\n{question}\n\n{context}### Response:\n"


def instruction_in(raw: Mapping[str, Any], question: str, answer: str, style: str) -> Instruction:
    """An instruction and its answer.

    Args:
        question, answer: their columns. The columns input (for Alpaca's rows), history and system go with them.
        style: see Instruction.

    Raises:
        WrongRow: a column has the wrong type, or there is no answer.
    """
    read = Instruction(
        system=optional_text(raw, "system"),
        rounds=_rounds(raw.get("history")) if style == "alpaca" else [],
        question=text_in(raw[question], question),
        given=optional_text(raw, "input") if style == "alpaca" else "",
        answer=text_in(raw[answer], answer),
        style=style,
    )
    if not read.answer.strip():
        raise EmptyAnswer(f"the {answer} is empty; there is nothing to train on")
    return read


def _rounds(history: Any) -> list[tuple[str, str]]:
    if not history:
        return []
    pairs = history if isinstance(history, list) else [history]
    for index, pair in enumerate(pairs):
        if not isinstance(pair, list) or len(pair) != 2:
            raise WrongRow(f"history[{index}] is {shown(pair)}; it must be a pair [question, answer]")
    rounds = [
        (text_in(question, f"history[{index}][0]"), text_in(answer, f"history[{index}][1]"))
        for index, (question, answer) in enumerate(pairs)
    ]
    for index, (_, answer) in enumerate(rounds):
        if not answer.strip():
            raise EmptyAnswer(f"history[{index}][1] is empty; an answer is what is trained on")
    return rounds
