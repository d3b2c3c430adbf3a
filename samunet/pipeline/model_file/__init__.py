"""A trained model as one file for others: the .zip and its safe installation, and ONNX."""
