# syntax=docker/dockerfile:1
# multsd-export: from a checkpoint to a composed model repository. Two targets:
#
#   docker build -f docker/export.Dockerfile --target cpu -t multsd-export:0.1.0-cpu .
#   docker build -f docker/export.Dockerfile --target tensorrt -t multsd-export:0.1.0-tensorrt .
#
# `tensorrt` builds engines: its NGC_RELEASE has to be triton.Dockerfile's, for they belong to one TensorRT version.
ARG NGC_RELEASE=26.09
ARG PYTHON_VERSION=3.12.12

FROM python:${PYTHON_VERSION}-slim-bookworm AS cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /opt/multsd
COPY pyproject.toml constraints.txt README.md ./
# Dependencies before code: a change of the code leaves this layer alone. See triton.Dockerfile for the two steps.
RUN python3 -m venv --without-pip /opt/multsd/environment \
 && python3 -m pip --python /opt/multsd/environment/bin/python install --no-cache-dir --no-deps \
      ${TORCH_INDEX:+--index-url "${TORCH_INDEX}"} --constraint constraints.txt torch \
 && python3 -m pip --python /opt/multsd/environment/bin/python install --no-cache-dir \
      --constraint constraints.txt '.[export]' \
 && install -d -o 1000 -g 1000 /models /reports
COPY client client
COPY gateway gateway
COPY export export
COPY model_repository model_repository
# Editable: the exporter takes digests of its own files, and reads others that lie beside them.
RUN python3 -m pip --python /opt/multsd/environment/bin/python install --no-cache-dir --no-deps --editable . \
 && /opt/multsd/environment/bin/multsd-export --help
ENV PATH=/opt/multsd/environment/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp
USER 1000:1000
# Paths that are not absolute begin there: /opt/multsd is root's.
WORKDIR /models
ENTRYPOINT ["multsd-export", "--repository", "/opt/multsd/model_repository"]
CMD ["--help"]

FROM nvcr.io/nvidia/tensorrt:${NGC_RELEASE}-py3 AS tensorrt
# For CUDA: parity and the accuracy of engines are measured against torch on the same GPU.
ARG TORCH_INDEX=
USER 0
WORKDIR /opt/multsd
COPY pyproject.toml constraints.txt README.md ./
# The image's own packages stay visible, for TensorRT's bindings are among them.
RUN python3 -m venv --without-pip --system-site-packages /opt/multsd/environment \
 && python3 -m pip --python /opt/multsd/environment/bin/python install --no-cache-dir --no-deps \
      ${TORCH_INDEX:+--index-url "${TORCH_INDEX}"} --constraint constraints.txt torch \
 && python3 -m pip --python /opt/multsd/environment/bin/python install --no-cache-dir \
      --constraint constraints.txt '.[export]' \
 && install -d -o 1000 -g 1000 /models /reports
COPY client client
COPY gateway gateway
COPY export export
COPY model_repository model_repository
# A TensorRT that is missing, or older than the exporter takes, ends the build here.
RUN python3 -m pip --python /opt/multsd/environment/bin/python install --no-cache-dir --no-deps --editable . \
 && /opt/multsd/environment/bin/multsd-export --help \
 && /opt/multsd/environment/bin/python -c \
      'from multsd_export.engines.machine import import_tensorrt; print("TensorRT", import_tensorrt().__version__)'
ENV PATH=/opt/multsd/environment/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp
USER 1000:1000
# Paths that are not absolute begin there: /opt/multsd is root's.
WORKDIR /models
ENTRYPOINT ["multsd-export", "--repository", "/opt/multsd/model_repository"]
CMD ["--help"]
