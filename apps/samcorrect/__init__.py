"""samcorrect: a MONAI Label server app that labels an image store with SAM and corrects what it cannot trust."""

__version__ = "0.1.0"
