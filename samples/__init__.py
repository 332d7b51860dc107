"""Sample base model and subjects used by the tests and the documentation."""
