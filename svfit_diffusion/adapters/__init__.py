"""Adapters on models and pipelines: what is shifted, how a shift is applied, who is active."""
