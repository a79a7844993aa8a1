"""Networks in other forms: safetensors, Keras weights, SavedModel, PyTorch. The command line: convert.py."""
