"""What decides how a row is encoded."""

from __future__ import annotations

from dataclasses import dataclass

from raymb.data.shapes import Shape

DAY = "2024-07-26"
"""The date for chat templates that write one: rows must not differ from day to day. Llama 3.x's templates write this
one where they are given none."""


@dataclass(frozen=True)
class Settings:
    """What decides the tokens of a row.

    Args:
        model_path: directory of the tokenizer; trust_remote_code: of the model.
        chat_template: Jinja text instead of the tokenizer's own.
        shape: how a row is read.
        loss_mode: "assistant" (completions), "last_turn" or "full".
        max_tokens: longest sample: sequence length + 1, because the last token is only predicted.
        long_rows: "truncate", "drop" or "fail".
        architecture: of a vision-language model; "" for any other.
        copies: directory that the rows' images are copied to; "" for none, and no row may have one.
        train_on_roles: whose messages are trained.
        keep_reasoning: have the chat template keep the reasoning of earlier turns.
        system_prompt: the first message of conversations that have no such one.
        chat_template_kwargs: variables of the chat template, a JSON object.
        day: YYYY-MM-DD, for chat templates that write the date.
    """

    model_path: str
    trust_remote_code: bool
    chat_template: str | None
    shape: Shape
    loss_mode: str
    max_tokens: int
    long_rows: str
    architecture: str = ""
    copies: str = ""
    train_on_roles: tuple[str, ...] = ("assistant",)
    keep_reasoning: bool = False
    system_prompt: str | None = None
    chat_template_kwargs: str = "{}"
    day: str = DAY
