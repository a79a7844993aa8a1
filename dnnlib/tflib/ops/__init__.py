"""The official import paths of the custom ops; see `custom_ops`."""
