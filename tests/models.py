"""Small models with random weights and real tokenizers, for tests that train."""

from __future__ import annotations

import json
import random
from pathlib import Path

_WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu"]


def save_tokenizer(directory: Path) -> None:
    """A byte-level BPE tokenizer of at most 304 tokens, trained on a sentence. Needs no transformers."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=304, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    bpe.train_from_iterator([" ".join(_WORDS)], trainer)
    directory.mkdir(parents=True, exist_ok=True)
    bpe.save(str(directory / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"} | dict.fromkeys(
        ("eos_token", "pad_token"), "<|endoftext|>"
    )
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))


def make_tiny_qwen2(directory: Path, vocabulary: int = 304) -> Path:
    """A 4-layer Qwen2 with tied embeddings and QKV biases, and a tokenizer.

    Args:
        vocabulary: rows of the embedding; the tokenizer has fewer tokens.
    """
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    save_tokenizer(directory)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    model = Qwen2ForCausalLM(config)
    for parameter in model.parameters():  # random biases, too: zeros would hide a wrong split of them
        if parameter.dim() == 1 and not torch.all(parameter == 1):
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(directory)
    return directory


def write_rows(directory: Path, train: int = 96, validation: int = 16) -> Path:
    """train.jsonl and validation.jsonl of prompt/completion rows of different lengths."""
    directory.mkdir(parents=True, exist_ok=True)
    chance = random.Random(0)
    for name, count in (("train", train), ("validation", validation)):
        with open(directory / f"{name}.jsonl", "w", encoding="utf-8") as file:
            for _ in range(count):
                prompt = " ".join(chance.choices(_WORDS, k=chance.randint(2, 7)))
                completion = " " + " ".join(chance.choices(_WORDS, k=chance.randint(1, 5)))
                file.write(json.dumps({"prompt": prompt, "completion": completion}) + "\n")
    return directory
