"""Tokens to expert order and back. A row map here is [2, rows]: the token and the expert of each row."""

import torch


def moe_permute(
    inp: torch.Tensor, routing_map: torch.Tensor, num_out_tokens: int, max_token_num: int = -1, map_type: str = "mask"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Copies of the tokens, sorted by expert.

    Args:
        inp: [tokens, hidden].
        routing_map: [tokens, experts], true where a token goes to an expert.

    Returns:
        ([rows, hidden], row map).
    """
    if map_type != "mask":
        raise RuntimeError(f"map_type={map_type}: the CPU backend permutes by mask")
    experts, tokens = routing_map.bool().T.contiguous().nonzero(as_tuple=True)
    return inp.index_select(0, tokens), torch.stack((tokens, experts))


def moe_permute_with_probs(
    inp: torch.Tensor, probs: torch.Tensor, routing_map: torch.Tensor, num_out_tokens: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As moe_permute, with each row's routing probability: (rows, probabilities [rows], row map)."""
    rows, row_map = moe_permute(inp, routing_map, num_out_tokens)
    return rows, probs[row_map[0], row_map[1]], row_map


def moe_unpermute(
    inp: torch.Tensor,
    row_id_map: torch.Tensor,
    merging_probs: torch.Tensor | None = None,
    restore_shape: torch.Size | None = None,
    map_type: str = "mask",
    pad_offsets: torch.Tensor | None = None,
) -> torch.Tensor:
    """The sum over each token's rows, weighted by merging_probs [tokens, experts] if given."""
    if pad_offsets is not None:
        raise RuntimeError("pad_offsets: experts are padded for FP8 only, which the CPU backend does not compute")
    tokens, experts = row_id_map
    if merging_probs is not None:
        inp = inp * merging_probs[tokens, experts][:, None].to(inp.dtype)
    shape = restore_shape if restore_shape is not None else (int(tokens.max()) + 1, inp.shape[1])
    return inp.new_zeros(shape).index_add(0, tokens, inp)


def moe_sort_chunks_by_index(inp: torch.Tensor, split_sizes: torch.Tensor, sorted_index: torch.Tensor) -> torch.Tensor:
    """Cut dimension 0 into chunks and put them together in the order of sorted_index."""
    chunks = inp.split(split_sizes.tolist())
    return torch.cat([chunks[index] for index in sorted_index.tolist()])


def moe_sort_chunks_by_index_with_probs(
    inp: torch.Tensor, probs: torch.Tensor, split_sizes: torch.Tensor, sorted_index: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same for the tokens and their probabilities."""
    return tuple(moe_sort_chunks_by_index(x, split_sizes, sorted_index) for x in (inp, probs))  # type: ignore[return-value]
