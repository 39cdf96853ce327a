"""The formats of data sets: read into annotations, and written."""
