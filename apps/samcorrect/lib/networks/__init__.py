"""The SAM models, the student network and how both are run."""
