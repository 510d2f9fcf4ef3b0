"""Edits as files: taken away as one small file or as an adapter, opened again."""

from __future__ import annotations

import io
import tempfile
import zipfile
from pathlib import Path

import streamlit as st

from pages.shared import session
from pages.shared.edit_report import Report
from rome_core import LanguageModel, RomeError, export_adapter, load_edit, save_edit
from rome_core.edits import Edit


def downloads(lm: LanguageModel, report: Report) -> None:
    """Both forms of the edit. The files are made when the button is pressed."""
    edit, asked = report.edit, report.request
    name = f"{edit.method}-{asked.prompt.subject}-{asked.target_new.strip()}".replace(" ", "_")
    with st.container(horizontal=True):
        st.download_button(
            "Download the edit",
            lambda: edit_file(edit),
            f"{name}.safetensors",
            on_click="ignore",
            key="download-edit",
            help="Factors and settings in one small file, to be opened below or with rome_core.load_edit.",
        )
        st.download_button(
            "Download as LoRA adapter",
            lambda: adapter_zip(edit),
            f"{name}-adapter.zip",
            on_click="ignore",
            key="download-adapter",
            help="A zip with an adapter that peft loads onto the base model.",
        )
    st.caption(f"The file belongs to {lm.name} and is refused by any other model.")


def edit_file(edit: Edit) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "edit.safetensors"
        save_edit(edit, path)
        return path.read_bytes()


def adapter_zip(edit: Edit) -> bytes:
    packed = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        export_adapter(edit, folder)
        for path in sorted(Path(folder).rglob("*")):
            archive.write(path, path.relative_to(folder))
    return packed.getvalue()


def opened(lm: LanguageModel) -> Edit | None:
    """An edit that was uploaded just now: once for each file, and not again on every rerun."""
    file = st.file_uploader("Open a saved edit of this model", type=["safetensors"], key="edit-file")
    if file is None or session.recall(("opened", file.file_id)):
        return None
    session.remember(("opened", file.file_id), True)
    try:
        return read_edit(lm, file.getvalue())
    except RomeError as error:
        session.show_error(error)
        return None


def read_edit(lm: LanguageModel, data: bytes) -> Edit:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "edit.safetensors"
        path.write_bytes(data)
        return load_edit(path, lm)
