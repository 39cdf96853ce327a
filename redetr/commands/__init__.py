"""One module for each command: a dataclass of its flags that can `run()`, and `parse(args)`, which fills it."""
