"""The only room that knows Megatron. Import `raymb.bridge.imports` first: it makes importing Bridge affordable."""
