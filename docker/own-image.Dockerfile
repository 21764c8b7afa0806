# An image with packages of your own, for scripts that need them (docs/compose.md says how it is used).
ARG HPSEARCH_IMAGE=hpsearch:cpu
FROM ${HPSEARCH_IMAGE}
USER root
RUN pip --python /opt/hpsearch/bin/python install --no-cache-dir einops
USER 10001:10001
