"""The data set doctor: finds faults before they spoil training."""
