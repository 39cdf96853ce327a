"""The forms that data sets come in: read into annotations, and written."""
