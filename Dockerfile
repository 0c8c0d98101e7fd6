# Two stages: the wheel and its dependencies are built in one and copied from it into the other.
#
#     docker build -t twofold .
#     docker run --rm -p 8080:8080 -v "$PWD/examples/echo:/opt/ds/model/deployed_model:ro" twofold
#
# BASE is any Debian-like image with Python 3.11 or later as `python3`, its venv module, and curl or not:
# the health check needs no curl of its own.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
WORKDIR /src
RUN python3 -m venv /opt/twofold
# A compiler for the load balancer's hot path; where none can be had, that path is interpreted.
RUN headers=$(python3 -c 'import sysconfig; print(sysconfig.get_path("include"))') \
    && apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev $([ -e "$headers/Python.h" ] || echo python3-dev) \
    || echo 'no compiler: the load balancer will be interpreted' >&2
# The dependencies first: they change less often than the source, and their layer is kept.
COPY pyproject.toml setup.py README.md LICENSE ./
COPY twofold/__init__.py twofold/__init__.py
COPY server/__init__.py server/__init__.py
COPY loadbalancer/__init__.py loadbalancer/__init__.py
RUN TWOFOLD_INTERPRETED=1 /opt/twofold/bin/pip install --no-cache-dir --disable-pip-version-check .
COPY twofold twofold
COPY server server
COPY loadbalancer loadbalancer
RUN /opt/twofold/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps --force-reinstall . \
    && /opt/twofold/bin/python -m compileall -q /opt/twofold/lib

FROM ${BASE}
RUN useradd --create-home --uid 10001 datascience && mkdir -p /opt/ds/model/deployed_model
COPY --from=build /opt/twofold /opt/twofold
ENV PATH=/opt/twofold/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    TWOFOLD_HOST=0.0.0.0 \
    TWOFOLD_PORT=8080 \
    TWOFOLD_ARTIFACT=/opt/ds/model/deployed_model
# By number: an orchestrator that demands an ordinary user cannot look a name up.
USER 10001
WORKDIR /home/datascience
EXPOSE 8080
# A model may take minutes to load: until the start period ends, failing does not count.
HEALTHCHECK --interval=30s --timeout=3s --retries=3 --start-period=60s \
    CMD ["python3", "-c", "import os, urllib.request as u; u.urlopen('http://127.0.0.1:' + os.environ['TWOFOLD_PORT'] + '/health', timeout=2)"]
# twofold is process 1: it reaps what its children leave, and takes SIGTERM as the order to drain.
ENTRYPOINT ["twofold"]
CMD ["serve"]
