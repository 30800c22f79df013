"""Where training rows come from, what they become, and the files that the workers read. Imports no Megatron."""
