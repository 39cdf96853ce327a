"""A trained model that is ready to use: load it, and predict on images, folders, videos and
URLs.

`detector` loads and predicts, `images` takes what programs have, and `inference` speeds a model
up. `detections` and `segments` are the answers; `tiles` merges those of a large image. `sources`,
`streams` and `video` read frames, and `tracking` gives objects identities. The others concern the
output folder of `redetr predict`: `output_folder` and `output_names`, `records` with
`record_lines`, `record_formats`, `contact_sheet` and `resuming`.
"""
