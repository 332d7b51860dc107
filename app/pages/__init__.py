"""The pages of the web app: layout and wiring in Gradio, nothing else."""
