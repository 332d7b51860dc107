"""The web app: generate, compare, train and inspect subjects in the browser (`python -m app`)."""
