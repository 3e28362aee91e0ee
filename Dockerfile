# The server on a CPU; docs/serving.md has the commands. For an NVIDIA GPU: Dockerfile.cuda.
FROM python:3.11-slim

ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore \
    PYTHONUNBUFFERED=1 \
    XDG_CACHE_HOME=/cache

WORKDIR /source
# What is needed changes less often than the code: a layer of its own.
COPY requirements.txt ./
RUN pip install -r requirements.txt
COPY LICENSE README.md pyproject.toml ./
COPY janus_jax janus_jax
RUN pip install ".[serve]" && rm -rf build *.egg-info

# Compiled programs stay in /cache; the model is read from /checkpoint, and never written.
RUN useradd --uid 10001 --create-home janus \
    && mkdir /cache /checkpoint \
    && chown janus:janus /cache
VOLUME ["/cache", "/checkpoint"]
WORKDIR /home/janus
USER 10001:10001

EXPOSE 8000
# The port opens once the model is read, which may take minutes.
HEALTHCHECK --start-period=15m --interval=30s --timeout=10s \
    CMD ["python", "-c", \
    "from http.client import HTTPConnection as C; c = C('127.0.0.1', 8000, timeout=5); c.request('GET', '/health'); exit(c.getresponse().status != 200)"]
# Without JANUS_API_KEY it ends at once and says so. Flags after the name of the image are added, and come last.
ENTRYPOINT ["python", "-m", "janus_jax.serving", "--checkpoint", "/checkpoint", "--host", "0.0.0.0", "--port", "8000"]
