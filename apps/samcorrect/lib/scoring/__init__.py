"""MONAI Label scoring methods."""
