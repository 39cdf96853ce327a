"""Weights from files: read them, and start a training run from them."""
