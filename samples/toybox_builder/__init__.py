"""Builds the Toybox base model and its held-out subjects from free emoji art."""
