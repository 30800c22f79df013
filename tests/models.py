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


_CHATML_WITH_IMAGES = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content -%}
{%- if part.type == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>{%- else -%}{{ part.text }}{%- endif -%}
{%- endfor %}{% endif %}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant
{% endif -%}"""
_VISION_TOKENS = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")


def save_vision_tokenizer(directory: Path) -> dict[str, int]:
    """save_tokenizer's with a chat template and Qwen2.5-VL's special tokens: their ids. Needs no transformers."""
    from tokenizers import Tokenizer

    save_tokenizer(directory)
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.add_special_tokens(list(_VISION_TOKENS))
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "chat_template.jinja").write_text(_CHATML_WITH_IMAGES)
    settings = {"image_processor_type": "Qwen2VLImageProcessor", "min_pixels": 28 * 28, "max_pixels": 28 * 28 * 12}
    (directory / "preprocessor_config.json").write_text(json.dumps(settings))
    return {token: tokenizer.token_to_id(token) for token in _VISION_TOKENS}


def make_tiny_qwen25_vl(directory: Path) -> Path:
    """A Qwen2.5-VL of 4 language and 2 vision layers, with a tokenizer and an image processor."""
    import torch
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    ids = save_vision_tokenizer(directory)
    torch.manual_seed(0)
    text = {
        "vocab_size": 320,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.1,
        "bos_token_id": None,
        "eos_token_id": 0,
        "pad_token_id": 0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
    }
    vision = {
        "hidden_size": 32,
        "out_hidden_size": 64,
        "intermediate_size": 48,
        "depth": 2,
        "num_heads": 2,
        "window_size": 56,
        "fullatt_block_indexes": [1],
        "initializer_range": 0.1,
    }
    marks = {f"{name}_token_id": ids[f"<|{name}_pad|>"] for name in ("image", "video")}
    marks |= {f"vision_{end}_token_id": ids[f"<|vision_{end}|>"] for end in ("start", "end")}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **marks)
    model = Qwen2_5_VLForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(directory)
    return directory


_COLOURS = {"alpha": (220, 40, 40), "beta": (40, 200, 60), "gamma": (50, 60, 220), "delta": (230, 220, 40)}


def write_image_rows(directory: Path, train: int = 96, validation: int = 16) -> Path:
    """train.jsonl and validation.jsonl of conversations about images beside them: most with one, some with two or none;
    the answer names the image's colour."""
    from PIL import Image

    directory.mkdir(parents=True, exist_ok=True)
    chance = random.Random(0)
    for name, count in (("train", train), ("validation", validation)):
        with open(directory / f"{name}.jsonl", "w", encoding="utf-8") as file:
            for row in range(count):
                words = chance.choices(list(_COLOURS), k=(0, 1, 1, 2)[row % 4])
                parts: list[dict[str, str]] = []
                for index, word in enumerate(words):
                    size = chance.randint(30, 120), chance.randint(30, 120)
                    image = Image.new("RGB", size, _COLOURS[word])
                    image.putpixel((row % 30, index), (row, 0, 0))
                    image.save(directory / f"{name}-{row}-{index}.png")
                    parts.append({"type": "image", "image": f"{name}-{row}-{index}.png"})
                parts.append({"type": "text", "text": " ".join(chance.choices(_WORDS, k=chance.randint(1, 4)))})
                answer = " ".join(words) or chance.choice(_WORDS)
                messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": answer}]
                file.write(json.dumps({"messages": messages}) + "\n")
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
