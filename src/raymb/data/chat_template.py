"""A model's chat template: renders messages in the form that it takes them in. Imports transformers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

from raymb.data.settings import DAY
from raymb.data.shapes import Row

REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
_KEEPS_REASONING = {"preserve_thinking": True, "truncate_history_thinking": False, "clear_thinking": False}
_MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")
_ASKS_FOR_NULL = re.compile(r"(?<![a-z_])content['\"]?\]?\s*(?:is\s+(?:not\s+)?|[!=]=\s*)[nN]one")
_PROBE = "raymb-probe"


@dataclass(frozen=True)
class CallForm:
    """The form in which a template takes an assistant's message with tool calls.

    Args:
        nulls: null where it says nothing else.
        text: the arguments as JSON text.
    """

    nulls: bool = False
    text: bool = False

    def of(self, message: Row) -> Row:
        if not message.get("tool_calls"):
            return message
        changed = dict(message)
        if self.nulls and not message.get("content"):
            changed["content"] = None
        if self.text:
            changed["tool_calls"] = [_with_text_arguments(call) for call in message["tool_calls"]]
        return changed


class ChatTemplate:
    """A tokenizer's template.

    Args:
        tokenizer: of transformers, with a chat template.
        variables: that the template is given, such as enable_thinking.
        day: YYYY-MM-DD, what strftime_now writes.
    """

    def __init__(self, tokenizer: Any, variables: Mapping[str, Any] | None = None, day: str = DAY):
        from transformers.utils.chat_template_utils import render_jinja_template

        self.tokenizer = tokenizer
        self._jinja = render_jinja_template
        fixed = {"strftime_now": datetime.fromisoformat(day).strftime}
        self.variables = {**tokenizer.special_tokens_map, **fixed, **(variables or {})}
        self._call_form: CallForm | None = None  # the last that it took
        self._sources: dict[bool, tuple[str, bool]] = {}

    def source(self, tools: Any = None) -> tuple[str, bool]:
        """(its Jinja text, whether that marks the assistant's turns); some models have another one for tools."""
        key = bool(tools)
        if key not in self._sources:
            text = self.tokenizer.get_chat_template(None, tools or None)
            self._sources[key] = text, bool(_MARKS.search(text))
        return self._sources[key]

    def render(
        self, messages: list[Row], tools: list[Row] | None = None, *, prompt: bool = False
    ) -> tuple[str, list[tuple[int, int]]]:
        """(text, the stretches of it that the template marks as the assistant's).

        Args:
            prompt: with the generation prompt after the messages.

        Raises:
            Exception: whatever the template raises.
        """
        try:
            return self._rendered(messages, tools, prompt)
        except Exception:
            if tools is None:
                try:
                    return self._rendered(messages, [], prompt)  # it goes through tools without asking if there are any
                except Exception:  # the first one says more
                    pass
            raise

    def _rendered(self, messages: list[Row], tools: Any, prompt: bool) -> tuple[str, list[tuple[int, int]]]:
        if not any(message.get("tool_calls") for message in messages):
            return self._in_form(messages, tools, prompt, None)
        source, _ = self.source(tools)
        nulls = bool(_ASKS_FOR_NULL.search(source))
        forms = [CallForm(one, text) for one in (nulls, not nulls) for text in (False, True)]
        first: Exception | None = None
        for form in dict.fromkeys((self._call_form or forms[0], *forms)):
            try:
                found = self._in_form(messages, tools, prompt, form)
            except Exception as error:
                first = first or error
                continue
            if form.text or not _shows_a_dictionary(messages, found[0]):
                self._call_form = form
                return found
        raise first or TypeError("it writes the arguments of tool calls as Python does")

    def _in_form(
        self, messages: list[Row], tools: Any, prompt: bool, form: CallForm | None
    ) -> tuple[str, list[tuple[int, int]]]:
        source, marked = self.source(tools)
        if form is not None:
            messages = [form.of(message) for message in messages]
        if self.takes_parts:
            messages = [{**message, "content": _parts(message.get("content"))} for message in messages]
        texts, spans = self._jinja(
            [messages],
            tools=tools,
            chat_template=source,
            return_assistant_tokens_mask=marked,
            add_generation_prompt=prompt,
            **self.variables,
        )
        return str(texts[0]), list(spans[0]) if marked else []  # type: ignore[arg-type]

    @cached_property
    def takes_parts(self) -> bool:
        """Whether it writes a content only where that is a list of parts, as templates of vision-language models do."""
        found = []
        for content in (_PROBE, _parts(_PROBE)):
            messages = [{"role": "user", "content": content}, {"role": "assistant", "content": content}]
            try:
                text = self._jinja([messages], chat_template=self.source()[0], **self.variables)[0][0]
            except Exception:  # each row is refused with its own reason
                text = ""
            found.append(_PROBE in text)
        return found == [False, True]

    def keep_reasoning(self) -> bool:
        """Turn on what the template has for keeping the reasoning of earlier turns; False where it has nothing."""
        source = self.source()[0]
        switches = {name: value for name, value in _KEEPS_REASONING.items() if name in source}
        self.variables |= switches
        return bool(switches) or self._keeps_reasoning()

    def _keeps_reasoning(self) -> bool:
        turn = [{"role": "user", "content": "a"}, {"role": "assistant", "content": f"<think>\n{_PROBE}\n</think>\n\nb"}]
        try:
            return _PROBE in self.render([*turn, *turn[:1], {"role": "assistant", "content": "b"}])[0]
        except Exception:
            return False


def _parts(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _arguments(message: Row) -> list[Any]:
    return [(call.get("function") or call).get("arguments") for call in message.get("tool_calls") or ()]


def _shows_a_dictionary(messages: list[Row], text: str) -> bool:
    """Whether arguments were written as Python writes a dictionary: the template takes them for text."""
    found = [one for message in messages for one in _arguments(message) if isinstance(one, dict) and one]
    return any(repr(one) in text and json.dumps(one, ensure_ascii=False) != repr(one) for one in found)


def _with_text_arguments(call: Row) -> Row:
    inner = call.get("function") or call
    if isinstance(inner.get("arguments"), str | None):
        return call
    inner = {**inner, "arguments": json.dumps(inner["arguments"], ensure_ascii=False)}
    return {**call, "function": inner} if call.get("function") else inner
