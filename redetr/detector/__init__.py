"""A trained model that is ready to use: load it, and predict on images, folders, videos and
URLs."""
