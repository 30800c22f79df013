"""What decides how a row is encoded."""

from __future__ import annotations

from dataclasses import dataclass

from raymb.data.shapes import Shape


@dataclass(frozen=True)
class Settings:
    """What decides the tokens of a row.

    Args:
        model_path, revision, trust_remote_code: of the tokenizer.
        chat_template: Jinja text instead of the tokenizer's own.
        shape: how a row is read.
        loss_mode: "assistant" (completions), "last_turn" or "full".
        max_tokens: longest sample: sequence length + 1, because the last token is only predicted.
        long_rows: "truncate", "drop" or "fail".
        architecture: of a vision-language model; "" for any other.
        copies: directory that the rows' images are copied to; "" for none, and no row may have one.
    """

    model_path: str
    revision: str | None
    trust_remote_code: bool
    chat_template: str | None
    shape: Shape
    loss_mode: str
    max_tokens: int
    long_rows: str
    architecture: str = ""
    copies: str = ""
