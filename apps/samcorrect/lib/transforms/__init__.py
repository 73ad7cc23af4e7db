"""The one preprocessing of images, used by inference and training alike."""
