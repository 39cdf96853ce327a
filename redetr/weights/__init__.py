"""Reads weights from files, and starts training runs from them."""
