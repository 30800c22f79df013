"""What is trained with every published chat template: no word of a user, system or tool, all words of the assistant and
the mark after them, and the same tokens as in the template's marked twin. Writes the table of docs/chat-templates.md.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.data.masks import fault, marked_by_twin
from tests.data.published import (
    CONVERSATIONS,
    Published,
    Row,
    conversations,
    encoder_of,
    forms,
    published,
    small_tokenizer,
    template_marks,
)

from raymb.data.chat_template import ChatTemplate
from raymb.data.encode import Encoder
from raymb.data.sources import Batch
from raymb.data.turns import Turns

PAGE = Path(__file__).parents[2] / "docs" / "chat-templates.md"
TEMPLATES = published()
SIGNS = {"twin": "=", "other text": "+", "no twin": "+", "refused": "r", "refuses": "."}
MORE_THAN_TWIN = {"diffusion_gemma": "<|tool_response>"}
"""What Gemma stops at when it calls a tool; its twin leaves it out."""


@dataclass(frozen=True)
class Outcome:
    """
    Args:
        kind: a key of SIGNS, or "wrong".
        why: what is wrong, or why the row is refused.
    """

    kind: str
    why: str = ""


@dataclass(frozen=True)
class Case:
    """A template and its tokenizer."""

    template: Published
    encoder: Encoder

    @property
    def rows(self) -> dict[str, Row]:
        tokenizer = self.encoder.tokenizer
        return conversations(self.template, lambda messages: tokenizer.apply_chat_template(messages, tokenize=False))

    def outcome(self, row: Row) -> Outcome:
        encoded = self.encoder.encode(Batch("test row", range(1, 2), [copy.deepcopy(row)], 0))
        if not len(encoded.lengths):
            [(_, why)] = encoded.problems
            return Outcome("refused" if self._accepts(row) else "refuses", why)
        ids, trained = encoded.tokens.tolist(), encoded.trained.tolist()
        if wrong := fault(self.encoder.tokenizer, ids, trained):
            return Outcome("wrong", wrong)
        twin = self.template.twin
        if twin is None:
            return Outcome("no twin")
        found = (marked_by_twin(self.encoder.tokenizer, twin, form, ids) for form in forms(row))
        marked = next((one for one in found if one is not None), None)
        if marked is None:
            return Outcome("other text")
        more = self.encoder.tokenizer.convert_tokens_to_ids(MORE_THAN_TWIN.get(self.template.name, "none"))
        mine = [one * (token != more) for one, token in zip(trained, ids, strict=True)]
        differing = [token for token, a, b in zip(ids, mine, marked, strict=True) if a != b]
        shown = self.encoder.tokenizer.decode(differing)
        return Outcome("wrong", f"not as its twin: {shown!r}") if differing else Outcome("twin")

    def _accepts(self, row: Row) -> bool:
        """Whether the template itself takes the row, in one of the forms that templates take."""
        for form in forms(row):
            with suppress(Exception):
                self.encoder.tokenizer.apply_chat_template(form["messages"], tools=row.get("tools"), tokenize=False)
                return True
        return False


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    cases: dict[str, Case] = {}

    def make(name: str) -> Case:
        if name not in cases:
            cases[name] = Case(TEMPLATES[name], encoder_of(TEMPLATES[name], tmp_path_factory.mktemp(name)))
        return cases[name]

    return make


@pytest.fixture(scope="module")
def turns() -> Callable[[str], Turns]:
    @cache
    def make(name: str) -> Turns:
        return Turns(ChatTemplate(small_tokenizer(TEMPLATES[name].text)), "assistant")

    return make


@pytest.fixture(scope="module")
def table(case: Callable[[str], Case]) -> dict[str, dict[str, Outcome]]:
    """The outcome of each conversation with each template."""
    cases = {name: case(name) for name in TEMPLATES}
    return {name: {said: one.outcome(row) for said, row in one.rows.items()} for name, one in cases.items()}


@pytest.mark.parametrize("name", TEMPLATES)
def test_only_the_assistant_is_trained_and_all_of_it(name: str, table: dict[str, dict[str, Outcome]]) -> None:
    assert {said: outcome.why for said, outcome in table[name].items() if outcome.kind == "wrong"} == {}


PIECE = st.text(st.characters(exclude_categories=("Cs",)), max_size=6) | st.sampled_from(
    ["\n", " ", "\n\n", "<think>", "</think>", "\U000f0000", "{", "</tool_call>", "/nothink", "MARK", "MARK"]
)
TEXT = st.lists(PIECE, max_size=3).map("".join)


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(st.lists(st.tuples(TEXT, TEXT, st.integers(0, 50)), min_size=2, max_size=6), st.booleans())
def test_texts_of_any_kind(
    name: str, turns: Callable[[str], Turns], texts: list[tuple[str, str, int]], system: bool
) -> None:
    """Marks of the template, tags and blanks around the words that are looked for."""
    finder, marks = turns(name), list(chain(*template_marks(TEMPLATES[name].text)))
    roles = ["system"] * system + ["user", "assistant"] * len(texts)
    messages = [
        {"role": role, "content": f"{a.replace('MARK', marks[mark % len(marks)])}{role.upper()}0{b}"}
        for role, (a, b, mark) in zip(roles, texts, strict=False)
    ]
    try:
        found = finder.find({"messages": messages})
    except Exception:  # the template's, or a refusal
        return
    assert found.text.startswith(finder.template.render(messages)[0])
    trained = "".join(found.text[begin:end] for begin, end in found.trained)
    assert "USER0" not in trained and "SYSTEM0" not in trained
    assert trained.count("ASSISTANT0") == found.text.count("ASSISTANT0")


def test_what_is_refused_has_a_reason_and_is_rare(table: dict[str, dict[str, Outcome]]) -> None:
    outcomes = [outcome for row in table.values() for outcome in row.values()]
    kinds = Counter(outcome.kind for outcome in outcomes)
    taken = len(outcomes) - kinds["refuses"]
    right = kinds["twin"] + kinds["other text"] + kinds["no twin"]
    print(f"\n{len(table)} templates, {taken} pairs that a template takes: {dict(kinds)}, {right / taken:.1%} right")
    assert len(table) >= 41 and taken >= 800 and right / taken > 0.98
    reason = "no token of it is trained: the chat template leaves out the tool calls of 1 messages"
    assert [one for one in outcomes if one.kind == "refused" and not one.why.startswith(reason)] == []


def test_the_page_has_the_table(table: dict[str, dict[str, Outcome]]) -> None:
    lines = [" ".join(f"| {one}" for one in ["", *map(str, range(1, len(CONVERSATIONS) + 1))]) + " |"]
    lines.append("|---" * (len(CONVERSATIONS) + 1) + "|")
    for name, row in table.items():
        lines.append(" ".join(f"| {one}" for one in [name, *(SIGNS.get(row[said].kind, "!") for said in row)]) + " |")
    page = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    head, _, _ = page.partition("<!-- table -->\n")
    written = f"{head}<!-- table -->\n" + "\n".join(lines) + "\n"
    PAGE.write_text(written, encoding="utf-8")
    assert written == page, f"{PAGE.name} has been rewritten; look at it and commit it"
    names = "\n".join(f"{number}. {name}" for number, name in enumerate(CONVERSATIONS, start=1))
    assert names in head, f"the page's list of conversations must be\n{names}"
