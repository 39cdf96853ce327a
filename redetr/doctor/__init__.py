"""The data set doctor: what would spoil training, said before it does."""
