"""One module for each command: a dataclass of its flags that can `run()`, and `parse(args)`, which
fills it.

What computes is imported by the methods that need it: help, usage errors and completion do without
PyTorch, which takes seconds to import.
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
