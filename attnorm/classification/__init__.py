"""Image classification: one label an image."""

from attnorm.classification.task import Classification, labelled_images

__all__ = ["Classification", "labelled_images"]
