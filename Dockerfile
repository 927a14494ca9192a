# One image for every stage: the command says which. It runs as nobody special, and writes to /var/lib/tidemill alone.
FROM python:3.11.16-slim@sha256:9c900dea9e8fb7e16277c179b555cc72d29a352dbc33cff48ad5a0412fd5bfc7 AS build
ENV UV_PYTHON_DOWNLOADS=never UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1
WORKDIR /source
# The build's tools, each checked against its hash.
COPY requirements-build.lock ./
RUN python -m pip install --no-cache-dir --require-hashes -r requirements-build.lock && python -m venv --without-pip /opt/tidemill
# What is locked changes less often than the source, so it is a layer of its own.
COPY requirements-runtime.lock ./
RUN uv pip install --no-cache --python /opt/tidemill/bin/python --require-hashes -r requirements-runtime.lock
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY api api
COPY ingest ingest
COPY processors processors
COPY results results
COPY schemas schemas
COPY src src
COPY webhooks webhooks
RUN python -m hatchling build --target wheel --directory /wheel && uv pip install --no-cache --no-deps --python /opt/tidemill/bin/python /wheel/*.whl

FROM python:3.11.16-slim@sha256:9c900dea9e8fb7e16277c179b555cc72d29a352dbc33cff48ad5a0412fd5bfc7
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin tidemill \
    && install --directory --owner=tidemill --mode=0700 /var/lib/tidemill
COPY --from=build /opt/tidemill /opt/tidemill
ENV PATH=/opt/tidemill/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    TIDEMILL_DATA=/var/lib/tidemill TIDEMILL_HOST=0.0.0.0 TIDEMILL_HEALTH_HOST=0.0.0.0 TIDEMILL_HEALTH_PORT=8081
USER 10001
WORKDIR /var/lib/tidemill
VOLUME /var/lib/tidemill
EXPOSE 8080 8081
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen(f\"http://127.0.0.1:{os.environ['TIDEMILL_HEALTH_PORT']}/livez\", timeout=4)"]
ENTRYPOINT ["tidemill"]
CMD ["--help"]
