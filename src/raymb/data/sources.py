"""From `--dataset` to rows: SQuAD from the hub, the sample dialogues, a JSONL file, a directory of two."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from raymb.data.jsonl import read_jsonl
from raymb.data.rows import Row, Rows, split
from raymb.errors import DataError
from raymb.spec import RunSpec

SQUAD = "rajpurkar/squad"
_WAYS_OUT = (
    "use your own rows with --dataset FILE.jsonl, or the dialogues of the chatterbot-corpus package with "
    "--dataset sample"
)


def load_rows(spec: RunSpec, chat: bool) -> Rows:
    """The rows that the spec asks for, checked and split.

    Args:
        spec: `data.dataset`, `data.validation_split` and `train.seed` count here.
        chat: does the model's tokenizer have a chat template?

    Raises:
        DataError: the rows cannot be had or cannot be used with this model.
    """
    dataset, share, seed = spec.data.dataset, spec.data.validation_split, spec.train.seed
    if dataset is None:
        return _squad()
    if dataset == "sample":
        train, validation = split(_dialogues(chat), share, seed)
        return Rows("messages" if chat else "prompt_completion", train, validation, "the chatterbot-corpus package")
    rows = _local(Path(dataset).expanduser(), share, seed)
    if rows.kind == "messages" and not chat:
        raise DataError(
            f"--dataset {dataset}: its rows are messages, but {spec.model.hf_model_path} has no chat template",
            "give prompt/completion rows with --dataset, or an instruct model with --hf_model_path",
        )
    return rows


def _local(path: Path, share: float, seed: int) -> Rows:
    if path.is_dir():
        return _directory(path, share, seed)
    if not path.exists():
        raise DataError(f"--dataset {path}: no such file or directory", _WAYS_OUT)
    if path.suffix != ".jsonl" or not path.is_file():
        raise DataError(f"--dataset {path}: a .jsonl file or a directory with train.jsonl is expected", _WAYS_OUT)
    kind, rows = read_jsonl(path)
    train, validation = split(rows, share, seed)
    return Rows(kind, train, validation, str(path))


def _directory(path: Path, share: float, seed: int) -> Rows:
    """A directory without validation.jsonl is split like a single file."""
    train_file, validation_file = path / "train.jsonl", path / "validation.jsonl"
    if not train_file.is_file():
        raise DataError(f"--dataset {path}: this directory has no train.jsonl", _WAYS_OUT)
    kind, rows = read_jsonl(train_file)
    if not validation_file.exists():
        train, validation = split(rows, share, seed)
        return Rows(kind, train, validation, str(path))
    other_kind, held_out = read_jsonl(validation_file)
    if other_kind != kind:
        raise DataError(
            f"--dataset {path}: train.jsonl holds {kind} rows and validation.jsonl {other_kind} rows",
            "use one kind in both files",
        )
    return Rows(kind, tuple(rows), tuple(held_out), str(path))


def _dialogues(chat: bool) -> list[Row]:
    """Question and first answer of every English dialogue, a question asked again left out.

    2,026 dialogues ask 748 questions (ten tech-support questions alone a thousand times): with repetitions, a held-out
    question would be trained on. Further answers contradict the first.
    """
    import yaml

    spec = importlib.util.find_spec("chatterbot_corpus")
    folder = Path(spec.origin or "").parent / "data" / "english" if spec else None
    if folder is None or not folder.is_dir():
        raise DataError(
            "--dataset sample: the package chatterbot-corpus is not installed",
            "pip install chatterbot-corpus (the extra `sample`), or use your own rows with --dataset FILE.jsonl",
        )
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    answers: dict[str, tuple[str, str]] = {}
    for file in sorted(folder.glob("*.yml")):
        for conversation in yaml.load(file.read_text(encoding="utf-8"), loader)["conversations"]:
            if not isinstance(conversation, list) or len(conversation) < 2:
                continue  # one entry of trivia.yml is a bare string
            question, answer = (str(text).strip() for text in conversation[:2])
            if question and answer:
                answers.setdefault(question.casefold(), (question, answer))
    return [_dialogue_row(question, answer, chat) for question, answer in answers.values()]


def _dialogue_row(question: str, answer: str, chat: bool) -> Row:
    if chat:
        return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
    return {"prompt": f"Question: {question}\nAnswer:", "completion": f" {answer}"}


def _squad() -> Rows:
    parts = _load_squad()
    train, validation = (tuple(_squad_row(example) for example in parts[name]) for name in ("train", "validation"))
    return Rows("prompt_completion", train, validation, f"{SQUAD} on the hub")


def _load_squad() -> Any:
    """SQuAD from the hub, or from the local cache when the hub does not answer."""
    try:
        import datasets
        import datasets.config
        from huggingface_hub import HfApi
    except ImportError as error:
        raise DataError(f"SQuAD needs the package {error.name}, which is not installed", _WAYS_OUT) from None
    try:
        HfApi().dataset_info(SQUAD, timeout=5)  # datasets alone retries for half a minute
    except Exception as error:
        datasets.config.HF_HUB_OFFLINE = True
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
    else:
        reason = ""
    try:
        return datasets.load_dataset(SQUAD)
    except Exception as error:
        why = reason or f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise DataError(
            f"without --dataset, SQuAD is read from the hub, which failed ({why[:200]})", _WAYS_OUT
        ) from None


def _squad_row(example: dict[str, Any]) -> Row:
    prompt = f"Context: {example['context']} Question: {example['question']} Answer:"
    return {"prompt": prompt, "completion": f" {example['answers']['text'][0]}"}
