"""A trained model as something to ask: load it, and predict on images, folders, videos and
addresses."""
