"""Models as files for other runtimes, compared with PyTorch."""
