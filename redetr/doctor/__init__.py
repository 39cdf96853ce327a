"""The data set doctor: finds faults before they spoil training.

`check` runs all checks: `boxes`, `classes`, `images` and `splits` find faults, `plan` is what
training would choose, and `locations` says where an object is. `samples` selects and decodes images
for the page; `sheet` writes it, and `tables` prints the report.
"""
