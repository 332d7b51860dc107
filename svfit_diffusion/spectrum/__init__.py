"""Tensors only: bases, ranks, shifts and their products, and the cache of bases."""
