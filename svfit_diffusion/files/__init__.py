"""Files: written whole or not at all, read safely; the adapter format, model cards and the hub."""
