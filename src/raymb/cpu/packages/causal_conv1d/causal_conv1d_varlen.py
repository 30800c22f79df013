"""The states that generating text starts from: Megatron-Core names this module's function, no training run calls it."""

from raymb.cpu.stand_in import unavailable

causal_conv1d_varlen_states = unavailable(__name__, "causal_conv1d_varlen_states")
