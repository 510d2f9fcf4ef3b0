# The app for others to use, on the CPU: see docs/serving.md.
FROM python:3.12-slim

RUN useradd --create-home --uid 1000 rome
WORKDIR /app
ENV PIP_NO_CACHE_DIR=1 \
    PYTHONUNBUFFERED=1 \
    ROME_EXPLORER_CACHE=/data \
    ROME_EXPLORER_LOG=json \
    ROME_EXPLORER_PUBLIC=1

# torch alone and first: its wheel is the largest part and changes least often. Give the index of its CPU wheels (its
# install page names it), or gigabytes of CUDA come along: --build-arg TORCH_INDEX=...
ARG TORCH_INDEX=""
RUN pip install "torch>=2.8,<2.14" ${TORCH_INDEX:+--index-url "$TORCH_INDEX"}
COPY pyproject.toml README.md LICENSE ./
COPY rome_core rome_core
COPY assets assets
RUN pip install -e .
COPY app.py ./
COPY pages pages
COPY docs/studies docs/studies
COPY .streamlit .streamlit
# Written at the start: the bundle of the attention view.
RUN mkdir -p static /data && chown -R rome:rome static /data

USER rome
# The default model, so that no visitor waits for it. Leave the line out and mount a filled /data instead, offline.
RUN python -c "from rome_core import load_model; load_model()"
VOLUME /data
EXPOSE 8501
HEALTHCHECK --interval=30s --timeout=5s CMD python -c "from urllib.request import urlopen as u; u('http://127.0.0.1:8501/_stcore/health')"
# SIGTERM: work stops at its next step, what is being written is finished, for at most 20 seconds.
STOPSIGNAL SIGTERM
CMD ["streamlit", "run", "app.py", "--server.address", "0.0.0.0", "--server.port", "8501"]
