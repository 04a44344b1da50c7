# Penstock with torch's CPU build.  Build: docker build -t penstock .  Run: see compose.yaml.
FROM python:3.12-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /build
RUN python -m venv /opt/penstock
ENV PATH=/opt/penstock/bin:$PATH
# What changes least comes first: torch, then the locked packages, then the source.
ARG PYTORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY tools/install_torch.py tools/
RUN python tools/install_torch.py cpu
COPY locks/serve.txt locks/
RUN pip install --quiet --require-hashes -r locks/serve.txt
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN pip install --quiet --no-deps --no-build-isolation .

FROM python:3.12-slim-bookworm
LABEL org.opencontainers.image.title="penstock" org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --uid 10001 --create-home penstock && install -d -o penstock -g penstock /models
COPY --from=build /opt/penstock /opt/penstock
# Inside a container the ports are reachable only as far as they are published, so that is where they are guarded:
# publish them on 127.0.0.1 (compose.yaml does), or put a proxy that asks for a key in front.
ENV PATH=/opt/penstock/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/models/huggingface \
    PENSTOCK_HOME=/models/penstock \
    PENSTOCK_HOST=0.0.0.0 \
    PENSTOCK_ADMIN_HOST=0.0.0.0 \
    PENSTOCK_INSECURE_NO_AUTH=1
USER 10001
WORKDIR /models
VOLUME /models
EXPOSE 8000 8001
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["penstock", "serve"]
