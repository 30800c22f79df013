"""After training: what the base and the tuned model answer to the same prompt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ray  # noqa: TID253
from rich.console import Console
from rich.panel import Panel

from raymb.job import Job


def print_answers(job: Job, console: Console) -> None:
    """Ask both models, in a Ray task, and print their answers beside the one in the data if there is one."""
    messages, expected = _question(job)
    models = {"base model": job.model_path, "tuned model": job.hf_dir}
    console.print("asking the base and the tuned model", style="dim")
    answers = ray.get(_answers.options(num_cpus=1).remote(list(models.values()), messages))
    prompt = messages if isinstance(messages, str) else messages[-1]["content"]
    console.print(Panel(prompt, title="prompt", title_align="left"))
    for name, answer in zip(models, answers, strict=True):
        console.print(Panel(answer, title=name, title_align="left"))
    if expected:
        console.print(Panel(expected, title="in the data", title_align="left"))


def _question(job: Job) -> tuple[str | list[dict[str, str]], str]:
    """The prompt in the shape of the training rows, and the answer that the data gives (\"\" for the user's own)."""
    asked = job.spec.run.sample_prompt or ""
    if asked == "held-out":
        file = Path(job.data_dir, "validation.jsonl" if job.validation_rows else "training.jsonl")
        row = _first_question([json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()])
        if job.data_kind == "messages":
            last = max(index for index, message in enumerate(row["messages"]) if message["role"] == "assistant")
            return row["messages"][:last], row["messages"][last]["content"]
        return row["prompt"], row["completion"]
    return ([{"role": "user", "content": asked}] if job.data_kind == "messages" else asked), ""


def _first_question(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """A row that asks something shows more than one that says something."""
    return next((row for row in rows if "?" in json.dumps(row)), rows[0])


@ray.remote
def _answers(directories: list[str], prompt: str | list[dict[str, str]]) -> list[str]:
    """The models' greedy answers, at most 48 tokens each, in fp32: bf16 is slow on many CPUs."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    texts = []
    for directory in directories:
        tokenizer = AutoTokenizer.from_pretrained(directory)
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        if isinstance(prompt, str):
            inputs = tokenizer(prompt, return_tensors="pt")
        else:
            inputs = tokenizer.apply_chat_template(
                prompt, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
        output = model.generate(  # type: ignore[attr-defined]
            **inputs, max_new_tokens=48, do_sample=False, pad_token_id=tokenizer.eos_token_id
        )
        texts.append(tokenizer.decode(output[0][inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip())
    return texts
