"""Training steps: what the range test and the fine-tuner share."""
