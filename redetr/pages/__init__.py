"""Drawings, curves, and templates of HTML pages that need no other file."""
