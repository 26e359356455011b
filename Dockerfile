# The image of the parts without torch: api and Flower.
#
# BASE_IMAGE: any Debian or Ubuntu whose python3 is 3.11 or newer; python3 is installed where it is missing.
ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS python
RUN command -v python3 > /dev/null \
    || { apt-get update && apt-get install -y --no-install-recommends python3 && rm -rf /var/lib/apt/lists/*; }
RUN python3 -c 'import sys; sys.exit("python3 of BASE_IMAGE is older than 3.11" if sys.version_info < (3, 11) else 0)'

FROM python AS dependencies
RUN python3 -c 'import ensurepip' 2> /dev/null \
    || { apt-get update && apt-get install -y --no-install-recommends python3-venv && rm -rf /var/lib/apt/lists/*; }
# pip stays in an environment of its own, so that none is in the final image.
RUN python3 -m venv /pip && python3 -m venv --without-pip /venv
WORKDIR /src
COPY pyproject.toml constraints.txt ./
# The dependencies alone, by way of an empty package: they are installed again only when these two files change.
# The secret pip_conf is for a private index: it is in no layer, and absent it is nothing.
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    mkdir api shared worker && touch README.md LICENSE \
    && /pip/bin/pip install 'hatchling>=1.27' \
    && /pip/bin/pip --python /venv/bin/python install -c constraints.txt '.[api,flower]' \
    && /pip/bin/pip --python /venv/bin/python uninstall -y colqueue

FROM dependencies AS package
# .dockerignore lets in the package's own files and nothing else.
COPY . .
RUN /pip/bin/pip install --no-deps --no-build-isolation --no-index --target /app .

FROM python
RUN groupadd --gid 10001 colqueue \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin colqueue
COPY --from=dependencies /venv /venv
COPY --from=package /app /app
ENV PATH=/venv/bin:$PATH \
    PYTHONPATH=/app \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    COLQUEUE_HOST=0.0.0.0 \
    COLQUEUE_PORT=8000
WORKDIR /app
USER 10001:10001
EXPOSE 8000
CMD ["python", "-m", "api"]
