"""`python dump_batches.py DATA_DIR MODEL STEPS GLOBAL_BATCH SEQ_LENGTH OUT`: the global batches that a run trains on,
as Bridge's own dataset makes them. A process of its own: it puts on the CPU accelerator."""

import sys

import torch


def main() -> None:
    data_dir, model, steps, batch_size, seq_length, out = sys.argv[1:]
    from raymb import cpu
    from raymb.bridge import imports

    imports.install()
    cpu.activate()
    import megatron.bridge.models.conversion  # noqa: F401  # before the data room, as in a worker
    from megatron.bridge.data.builders.gpt_sft import build_gpt_sft_split
    from megatron.bridge.training.tokenizers.config import TokenizerConfig
    from megatron.bridge.training.tokenizers.tokenizer import build_tokenizer

    from raymb.bridge.config import _prompt_completion

    tokenizer = build_tokenizer(TokenizerConfig(tokenizer_type="HuggingFaceTokenizer", tokenizer_model=model))
    count = int(steps) * int(batch_size)
    dataset = build_gpt_sft_split(
        f"{data_dir}/training.jsonl",
        tokenizer=tokenizer,
        seq_length=int(seq_length),
        memmap_workers=1,
        seed=1234,
        packed_sequence_size=-1,
        dataset_kwargs={
            "max_num_samples": None,
            "pad_to_max_length": True,
            "prompt_completion_config": _prompt_completion(),
        },
    )
    batches = []
    assert count <= len(dataset), "one epoch is enough here"
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(1234)).tolist()  # Bridge's, epoch 0
    for start in range(0, count, int(batch_size)):
        batch = dataset.collate_fn([dataset[index] for index in order[start : start + int(batch_size)]])
        batches.append({key: batch[key] for key in ("tokens", "labels", "loss_mask")})
    torch.save(batches, out)


main()
