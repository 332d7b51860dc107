"""Many subjects: trained over several machines, and served from one base."""
