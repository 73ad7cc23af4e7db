"""MONAI Label next-sample strategies."""
