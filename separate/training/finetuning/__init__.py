"""Fine-tuning of a trained separator."""
