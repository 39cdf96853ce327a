"""Reads and writes the formats of data sets."""
