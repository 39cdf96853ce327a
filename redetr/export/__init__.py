"""Exports models to files for other runtimes, and compares these with PyTorch."""
