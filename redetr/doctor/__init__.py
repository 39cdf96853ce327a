"""The data set doctor: reports what would spoil training, before it does."""
