"""The stages of a round, their order, checkpoints and evaluation."""
