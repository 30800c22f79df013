"""Which characters of a rendered conversation are trained.

Sentinels (sentinels.py) show where a message's own words are. Between them is what the template writes: the end of one
message, then the head of the next. What it writes after the same words when the conversation ends there, with and
without a generation prompt, shows where the one ends and the other begins (boundaries.py). A trained stretch never
contains another message's words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from raymb.data.boundaries import Marks
from raymb.data.chat_template import REASONING_KEYS, ChatTemplate
from raymb.data.message_values import without_weights
from raymb.data.row_values import WrongRow
from raymb.data.sentinels import NAME, REASONING, WORDS, Run, Sentinels, runs_of
from raymb.data.shapes import Row

Stretch = tuple[int, int]
_CACHED = 10_000
_STANDARD_KEYS = {"role", "content", "tool_calls", "tool_call_id", "name", "id"}
_PROBE = [{"role": "user", "content": "raymb-question"}, {"role": "assistant", "content": "raymb-answer"}]


@dataclass(frozen=True)
class Conversation:
    """
    Args:
        text: as the template writes it, with the mark that ends the last answer where the template writes none.
        trained: (begin, end) of the stretches that are targets.
        dropped: what the template leaves out, "the reasoning of {n} messages", and how many times.
    """

    text: str
    trained: list[Stretch]
    dropped: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Layout:
    """A rendered conversation and who says what in it.

    Args:
        marks: (place in the text, message, kind) of each sentinel.
        runs: of them.
    """

    text: str
    marks: list[tuple[int, int, int]]
    runs: list[Run]

    def gap(self, index: int) -> str:
        """From the end of a run to the next; before the first for -1."""
        begin = self.runs[index].end if index >= 0 else 0
        return self.text[begin : self.runs[index + 1].begin if index + 1 < len(self.runs) else len(self.text)]

    def tail(self, run: Run | None) -> str | None:
        """What follows the last words of another layout's run, up to any others; None where they are not here."""
        if run is None:
            return self.gap(-1)
        same = [number for number, mark in enumerate(self.marks) if mark[1:] == run.last[:2]]
        if len(same) < run.last[2]:
            return None
        number = same[run.last[2] - 1]
        return self.text[self.marks[number][0] : (*self.marks, (len(self.text), 0, 0))[number + 1][0]]


class Turns:
    """
    Args:
        template: the model's.
        loss_mode: "assistant", "last_turn" or "full".
        roles: whose messages are trained.
    """

    def __init__(self, template: ChatTemplate, loss_mode: str, roles: Iterable[str] = ("assistant",)):
        self.template, self.loss_mode, self.roles = template, loss_mode, frozenset(roles)
        self.marks = Marks(template.tokenizer)
        self._known: dict[tuple[Any, ...], int | str] = {}

    def find(self, row: Row) -> Conversation:
        """What is trained of a row of messages.

        Raises:
            WrongRow: turns cannot be told apart.
            Exception: whatever the template raises.
        """
        view = _View(self, row)
        closing = "" if view.marked else view.closing_mark()
        conversation = Conversation(view.text + closing, [], view.dropped())
        masked = {i for i, message in enumerate(row["messages"]) if message.get("weight") == 0}
        if self.loss_mode == "full":
            left_out = view.stretches(masked, closing)
            edges = [0, *(edge for stretch in left_out for edge in stretch), len(conversation.text)]
            conversation.trained.extend(zip(edges[::2], edges[1::2], strict=True))
            return conversation
        wanted = [i for i, message in enumerate(row["messages"]) if message["role"] in self.roles]
        wanted = wanted[-1:] if self.loss_mode == "last_turn" else wanted
        conversation.trained.extend(view.stretches({*wanted} - masked, closing))
        return conversation

    @cached_property
    def ends_by_next(self) -> bool:
        """Whether nothing of its own ends an answer, so that the next message's mark does, as in GLM's templates."""
        try:
            text, _ = self.template.render(_PROBE)
        except Exception:
            return False
        return not self.marks.special(text.rpartition(_PROBE[1]["content"])[2])

    @cached_property
    def prompt(self) -> str:
        """The generation prompt after a plain question, for places where the template does not render one."""
        try:
            prompted, tail = (self.template.render(_PROBE[:1], prompt=prompt)[0] for prompt in (True, False))
        except Exception:
            return ""
        return prompted[self.marks.shared(prompted, tail) :]

    def end(self, gap: str, tail: str | None) -> int:
        """Where in a gap a message's turn ends; a generation prompt is no part of it."""
        shared = self.marks.shared(gap, tail or "")
        if self.prompt and gap.startswith(self.prompt, shared) and not self.ends_by_next:
            return shared
        return self.marks.end(gap, shared, self.ends_by_next)

    def known(self, key: tuple[Any, ...], find: Any) -> Any:
        """What `find` returns, which is looked up once: templates write few different gaps."""
        if key not in self._known:
            if len(self._known) >= _CACHED:
                self._known.clear()
            self._known[key] = find()
        return self._known[key]


class _View:
    """One row, rendered."""

    def __init__(self, turns: Turns, row: Row):
        self.turns, self.tools = turns, row.get("tools")
        self.messages = [without_weights(message) if "weight" in message else message for message in row["messages"]]
        self.text, self.marked = turns.template.render(self.messages, self.tools)
        self.sentinels = Sentinels(self.text, self.messages)
        self.layout = self._render(len(self.messages))
        if self.layout.text != self.text:
            raise WrongRow(
                "the chat template writes something else when its messages are marked, so that turns cannot be told "
                "apart; give a --chat_template with {% generation %} marks"
            )

    def _render(self, upto: int, prompt: bool = False) -> Layout:
        written, _ = self.turns.template.render(self.sentinels.messages[:upto], self.tools, prompt=prompt)
        text, marks = self.sentinels.read(written)
        return Layout(text, marks, runs_of(marks))

    def role(self, run: Run) -> str:
        return self.messages[run.message]["role"]

    def stretches(self, wanted: set[int], closing: str) -> list[Stretch]:
        """Of those messages, in order; the assistant's as the template marks them, if it does."""
        runs = enumerate(self.layout.runs)
        found = [(run.message, self._stretch(index, closing)) for index, run in runs if self._is_found(run, wanted)]
        return sorted(stretch for message, stretch in [*found, *self._owned()] if message in wanted)

    def _is_found(self, run: Run, wanted: set[int]) -> bool:
        return run.message in wanted and not (self.marked and self.role(run) == "assistant")

    def _owned(self) -> list[tuple[int, Stretch]]:
        """What the template marks, each with its message: the one that speaks in it, or else the last one's."""
        found, owner = [], -1
        for begin, end in self.marked:
            speakers = (run.message for run in self.layout.runs if run.begin < end and begin < run.end)
            owner = next((one for one in speakers if self.messages[one]["role"] == "assistant"), owner)
            found.append((owner, (begin, end)))
        return found

    def _stretch(self, index: int, closing: str) -> Stretch:
        """Of a run, with what ends it, without blanks at its end: many tokenizers make one token of a blank and the
        word that follows."""
        run, last = self.layout.runs[index], index + 1 == len(self.layout.runs)
        begin = self._begin(index) if self.role(run) == "assistant" else run.begin
        end = run.end + len(self.layout.gap(index)[: self._end(index)].rstrip(" "))
        return begin, end + (len(closing) if last else 0)

    def _end(self, index: int) -> int:
        """Characters after a run that belong to it."""
        run, gap = self.layout.runs[index], self.layout.gap(index)
        last = index + 1 == len(self.layout.runs)
        if last and len(self.messages) == run.message + 1:
            return len(gap)

        def find() -> int:
            upto = 1 + max(one.message for one in self.layout.runs[: index + 1])
            try:
                tail = self._render(upto).tail(run)
            except Exception:  # it refuses to end there
                tail = None
            return self.turns.end(gap, tail)

        calls = bool(self.messages[run.message].get("tool_calls"))
        return self.turns.known(("end", self.role(run), calls, last, gap), find)

    def _begin(self, index: int) -> int:
        """Where an assistant's run begins: after the generation prompt."""
        run, gap = self.layout.runs[index], self.layout.gap(index - 1)
        former = self.layout.runs[index - 1] if index else None
        if former is None and run.message == 0:
            return run.begin
        key = ("begin", self.role(former) if former else None, gap)
        found = self.turns.known(key, lambda: self._find_begin(run, former, gap, index))
        prompt = self.turns.prompt
        if isinstance(found, str):
            raise WrongRow(
                f"the chat template does not say where messages[{run.message}] begins{found}; give a --chat_template "
                f"with {{% generation %}} marks"
            )
        if prompt and gap.startswith(prompt, found):  # written, but not as a generation prompt, as after a tool message
            found += len(prompt)
        return run.begin - len(gap) + found

    def _find_begin(self, run: Run, former: Run | None, gap: str, index: int) -> int | str:
        """In the gap, or why that is not known."""
        marks, why = self.turns.marks, ""
        whole = max(run.message, 1 + max((one.message for one in self.layout.runs[:index]), default=-1))
        for upto in dict.fromkeys((run.message, whole)):
            try:
                prompted, tail = (self._render(upto, prompt).tail(former) for prompt in (True, False))
            except Exception as error:
                why = f" (it refuses the messages before: {' '.join(str(error).split())[:100]})"
                continue
            found = None if prompted is None else marks.begin(gap, prompted, tail or "")
            if found is not None:
                return found
        found = marks.after_prompt(gap, self.turns.prompt)
        return why if found is None else found

    def closing_mark(self) -> str:
        """The mark that ends an answer, where it is the last message and the template ends it by the next one's."""
        runs = self.layout.runs
        if not runs or runs[-1].message != len(self.messages) - 1 or self.role(runs[-1]) != "assistant":
            return ""
        gap = self.layout.gap(len(runs) - 1)
        if self.turns.marks.special(gap) and not self.turns.ends_by_next:
            return ""
        calls = bool(self.messages[-1].get("tool_calls"))
        return self.turns.known(("closing", calls), lambda: self._find_closing(calls))

    def _find_closing(self, calls: bool) -> str:
        following = {"role": "tool", "content": "0", "tool_call_id": "0"} if calls else {"role": "user", "content": "0"}
        runs = self.layout.runs
        try:
            written, _ = self.turns.template.render([*self.messages, following], self.tools)
        except Exception:
            written = self.text
        found = self.turns.marks.special(written, runs[-1].end) if written.startswith(self.text) else None
        return found[0] if found else self.turns.template.tokenizer.eos_token

    def dropped(self) -> Counter[str]:
        """What the template leaves out of the row."""
        found: Counter[str] = Counter()
        source, _ = self.turns.template.source(self.tools)
        missing = self.sentinels.expected - {(message, kind) for _, message, kind in self.layout.marks}
        for index, message in enumerate(self.messages):
            unread = [key for key in message.keys() - _STANDARD_KEYS if key not in source]
            found.update(f"the key {key!r} of {{n}} messages" for key in unread)
            if (index, REASONING) in missing and not set(unread) & set(REASONING_KEYS):
                found["the reasoning of {n} messages"] += 1
        for index, kind in missing:
            if kind == WORDS:
                found[f"{{n}} messages of the role {self.messages[index]['role']}"] += 1
            elif kind == NAME:
                found["the tool calls of {n} messages"] += 1
        if self.tools and "tools" not in source:
            found["the tools of {n} rows"] += 1
        return found
