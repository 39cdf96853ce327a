"""Reads weights from files, and starts training runs from them.

`locating` finds the file or folder that a user means, and `reading` reads it and describes its
detector. `official`, `panoptic`, `rtdetr`, `dfine` and `resnet_d` translate the names of tensors
from other programs, with `tensors`; `folder` and `detr_config` read what a Transformers folder
states beside them. `filling` loads a whole file into a model, and `starting` what fits into the
model of a new run, for which `untrained` checks what is frozen. `published` knows origins and
licences.
"""
