# syntax=docker/dockerfile:1
# The HTTP gateway. It writes nothing: run it with a read-only root.
#
#   docker build -f docker/gateway.Dockerfile -t multsd-gateway:0.1.0 .
ARG PYTHON_VERSION=3.12.12
FROM python:${PYTHON_VERSION}-slim-bookworm

WORKDIR /opt/multsd
COPY pyproject.toml constraints.txt README.md ./
# Dependencies before code: a change of the code leaves this layer alone.
RUN python3 -m venv --without-pip /opt/multsd/environment \
 && python3 -m pip --python /opt/multsd/environment/bin/python install --no-cache-dir \
      --constraint constraints.txt '.[gateway]'
COPY client client
COPY gateway gateway
# Editable: files that lie beside the code are found as in a checkout.
RUN python3 -m pip --python /opt/multsd/environment/bin/python install --no-cache-dir --no-deps --editable . \
 && /opt/multsd/environment/bin/multsd-gateway run --help

ENV PATH=/opt/multsd/environment/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    MULTSD_HOST=0.0.0.0 \
    MULTSD_LOG_FORMAT=json
USER 1000:1000
EXPOSE 5000
# Alive, not ready: a gateway whose Triton is away answers 503 with Retry-After, and is not to be restarted for it.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
  CMD ["python3", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:5000/healthz', timeout=3)"]
ENTRYPOINT ["multsd-gateway"]
CMD ["run"]
