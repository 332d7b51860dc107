# The web app in a container, on the CPU:
#     docker build --tag svfit .
#     docker run --publish 7860:7860 --volume svfit:/data svfit
# on an NVIDIA GPU, with the CUDA build of torch:
#     docker build --tag svfit --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128 .
#     docker run --gpus all --publish 7860:7860 --volume svfit:/data svfit
# with other options of `svfit app`:
#     docker run … svfit --base stable-diffusion-v1-5/stable-diffusion-v1-5 --username me --password …
FROM python:3.12-slim

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

RUN useradd --create-home --uid 1000 svfit && install --directory --owner svfit /data
WORKDIR /opt/svfit
RUN pip install --no-cache-dir "torch>=2.6" --index-url "${TORCH_INDEX}"
COPY pyproject.toml README.md LICENSE train_dreambooth_svfit.py ./
COPY svfit_diffusion svfit_diffusion
COPY app app
COPY samples samples
# Editable, so that the app finds the samples beside it.
RUN pip install --no-cache-dir --editable '.[app,peft,heic]'

USER 1000
ENV HF_HOME=/data/huggingface
VOLUME /data
EXPOSE 7860
ENTRYPOINT ["svfit", "app", "--host", "0.0.0.0", "--port", "7860", \
    "--adapters", "/data/adapters", "--outputs", "/data/outputs"]
