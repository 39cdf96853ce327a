"""One module per command: a dataclass of its flags with a `run()` method, and `parse(args)`, which
fills it.

The other modules are not commands: `arguments`, `console`, `recipe` and `run_pictures` are shared,
`demonstration` is part of `demo`, and `outcome` and `videos` are parts of `predict`.

PyTorch takes seconds to import, so only the methods that compute import it. Help, usage errors and
completion do without.
"""

COMMANDS = (
    "demo",
    "train",
    "evaluate",
    "predict",
    "explain",
    "app",
    "check",
    "convert",
    "export",
    "push",
    "models",
    "verify",
    "completion",
)
