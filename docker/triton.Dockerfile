# syntax=docker/dockerfile:1
# Triton with what the orchestrator imports. No model is inside: a composed repository is mounted at /models.
#
#   docker build -f docker/triton.Dockerfile -t multsd-triton:0.1.0 .
#
# 26.09 is Triton 2.73.0: the release of the client in constraints.txt, and newer than the security fixes of August
# 2026. Engines belong to one TensorRT version: export.Dockerfile has to be built with the same NGC_RELEASE.
ARG NGC_RELEASE=26.09
FROM nvcr.io/nvidia/tritonserver:${NGC_RELEASE}-py3

# The torch profile needs a build for CUDA instead, from the default index: --build-arg TORCH_INDEX=
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

USER 0
WORKDIR /opt/multsd
# Else ONNX Runtime writes a device id below HOME, here into the image, and sends events to its maker.
ENV ORT_DISABLE_TELEMETRY=1
COPY pyproject.toml constraints.txt README.md ./
# An environment of its own: the image's packages are the distribution's and cannot be replaced. It has no pip; the
# image's installs into it. torch comes first and alone, so that no other package can come from its index; whatever it
# depends on is installed with the rest. The project's own code is not copied here: what Triton runs is in /models.
RUN python3 -m venv --without-pip /opt/multsd/environment \
 && python3 -m pip --python /opt/multsd/environment/bin/python install --no-cache-dir --no-deps \
      ${TORCH_INDEX:+--index-url "${TORCH_INDEX}"} --constraint constraints.txt torch \
 && python3 -m pip --python /opt/multsd/environment/bin/python install --no-cache-dir \
      --constraint constraints.txt '.[repository]' \
 && /opt/multsd/environment/bin/python -c 'import diffusers, numpy, onnxruntime, tokenizers, torch, transformers' \
 && install -d -o 1000 -g 1000 /models
COPY docker/triton/probe.py /opt/multsd/probe.py
COPY docker/triton/05-leftovers.sh /opt/nvidia/entrypoint.d/05-leftovers.sh

# The Python backend finds its packages through the python3 that is first on PATH.
ENV PATH=/opt/multsd/environment/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    HF_HUB_OFFLINE=1
# triton-server in the base image; a number, so that Kubernetes can tell that it is not root.
USER 1000:1000
EXPOSE 8001 8002
# Ends a server whose model's process has died: Docker restarts what has ended, and not what is unhealthy.
HEALTHCHECK --interval=10s --timeout=10s --start-period=10m --retries=3 \
  CMD ["python3", "/opt/multsd/probe.py", "guard"]
# The base image's entry point stays: it checks the driver, and runs this. HTTP is for the probes alone; metrics
# would follow it to loopback. Exported configurations are complete: to look for what they lack, Triton would read every
# engine and start every Python model one time more.
CMD ["tritonserver", \
     "--model-repository=/models/repository", \
     "--model-control-mode=none", \
     "--disable-auto-complete-config", \
     "--exit-on-error=true", \
     "--strict-readiness=true", \
     "--exit-timeout-secs=330", \
     "--http-address=127.0.0.1", \
     "--grpc-address=0.0.0.0", \
     "--metrics-address=0.0.0.0", \
     "--grpc-max-response-pool-size=64"]
