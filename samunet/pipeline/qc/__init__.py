"""Quality control: what is unlike the training cases, and how good a prediction is likely to be."""
