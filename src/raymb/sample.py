"""After training: what the base and the tuned model answer to the same prompt."""

from __future__ import annotations

from pathlib import Path

import ray  # noqa: TID253
from rich.console import Console
from rich.panel import Panel

from raymb.job import Job


def print_answers(job: Job, console: Console) -> None:
    """Ask both models, in a Ray task, and print their answers beside the one in the data if there is one."""
    asked = job.spec.run.sample_prompt or ""
    question = _held_out(job) if asked == "held-out" else asked
    tuned = job.hf_dir if Path(job.hf_dir).exists() else job.adapter_dir  # PEFT loads the base model by itself
    models = {"base model": job.model_path, "tuned model": tuned}
    console.print("asking the base and the tuned model", style="dim")
    template = job.spec.data.chat_template
    prompt, expected, answers = ray.get(
        _answers.options(num_cpus=1).remote(list(models.values()), question, template and template.read_text())
    )
    console.print(Panel(prompt, title="prompt", title_align="left"))
    for name, answer in zip(models, answers, strict=True):
        console.print(Panel(answer, title=name, title_align="left"))
    if expected:
        console.print(Panel(expected, title="in the data", title_align="left"))


def _held_out(job: Job) -> tuple[list[int], list[int]]:
    """(tokens before the last trained stretch, that stretch) of the first held-out sample, of the first training one
    if none is held out."""
    from raymb.data.store import RowFile

    row = RowFile(Path(job.data_dir, f"{'validation' if job.validation_rows else 'train'}.arrow"))[0]
    length = row["lengths"][0]
    ids, trained = row["input_ids"][:length], row["trained"][:length]
    end = length - trained[::-1].argmax()
    start = end - (1 - trained[:end][::-1]).argmax() if (trained[:end] == 0).any() else 1
    return ids[:start].tolist(), ids[start:end].tolist()


@ray.remote
def _answers(
    directories: list[str], question: str | tuple[list[int], list[int]], chat_template: str | None
) -> tuple[str, str, list[str]]:
    """(prompt, expected answer, the models' greedy answers). At most 48 tokens each, in fp32: bf16 is slow on many
    CPUs. A question of the user is put into the chat template if there is one."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directories[0])
    tokenizer.chat_template = chat_template or tokenizer.chat_template
    if not isinstance(question, str):
        ids, answer = question
    elif tokenizer.chat_template:
        messages = [{"role": "user", "content": question}]
        ids, answer = (
            tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"],
            [],
        )
    else:
        ids, answer = tokenizer(question)["input_ids"], []
    texts = []
    for directory in directories:
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        output = model.generate(  # type: ignore[attr-defined]
            torch.tensor([ids]), max_new_tokens=48, do_sample=False, pad_token_id=tokenizer.eos_token_id
        )
        texts.append(tokenizer.decode(output[0][len(ids) :], skip_special_tokens=True).strip())
    prompt = question if isinstance(question, str) else tokenizer.decode(ids, skip_special_tokens=True).strip()
    return prompt, tokenizer.decode(answer, skip_special_tokens=True).strip(), texts
