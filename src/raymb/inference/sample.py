"""After training: what the base and the tuned model answer to the same prompt, on the screen and in answers.jsonl."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console

from raymb.data.samples import samples_in
from raymb.data.store import RowFile
from raymb.inference.choice import chosen_engine
from raymb.inference.engine import Sampling
from raymb.inference.engines import each_engine
from raymb.inference.generate import PromptFormat, answers_of, print_answers
from raymb.inference.tuned_model import find_tuned_model
from raymb.run.directory import RunDir
from raymb.run.job import Job

_TOKENS = 48


def print_sample(job: Job, place: RunDir, console: Console) -> None:
    """Have both models answer --sample_prompt, and print their answers beside the one in the data if there is one."""
    asked, model = job.spec.run.sample_prompt or "", find_tuned_model(job.run_dir)
    prompt_format = PromptFormat(model)
    expected = {}
    if asked == "held-out":
        part = "validation" if job.validation_rows else "train"
        prompt, answer = next(samples_in(RowFile(Path(job.data_dir, f"{part}.arrow")))).last_answer()
        asked, expected = prompt_format.text(prompt), {"in the data": prompt_format.text(answer)}
    else:
        prompt = prompt_format.tokens(asked)
    console.print("generating with the base and the tuned model", style="dim")
    engines = each_engine(model, prompt_format.tokenizer, True, chosen_engine("transformers", model, console), console)
    answers = {
        name: answers_of(name, engine, prompt_format, [prompt], Sampling(_TOKENS), console)[0]
        for name, engine in engines
    }
    said = {**answers, **expected}
    with open(place.answers, "a", encoding="utf-8") as stream:
        stream.write(json.dumps({"prompt": asked, **said}, ensure_ascii=False) + "\n")
    print_answers(asked, said, console)
