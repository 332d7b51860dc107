"""Many subjects over many machines: trained by workers on Ray, and served from one base."""
