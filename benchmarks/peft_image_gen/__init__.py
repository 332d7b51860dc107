"""SVFit in PEFT's comparison of methods on image generation."""
