"""Many subjects over many machines: trained by workers on Ray."""
