"""The command `svfit`: a module per group of commands, put together in `main`.

Torch, diffusers and the rest of this package are imported inside the commands, so that `--help`,
completion and a misspelt flag are answered at once.
"""
