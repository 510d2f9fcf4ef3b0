"""Edits as files: taken away as one small file or as an adapter, opened again."""

from __future__ import annotations

import io
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import streamlit as st

from pages.shared import public, session, track
from pages.shared.charts import download
from pages.shared.text import literal
from rome_core import EditError, LanguageModel, RomeError, export_adapter, load_edit, save_edit
from rome_core.editing.edit import Edit
from rome_core.editing.storage import export_merged
from rome_core.evaluation.before_after import Report
from rome_core.files import cache_dir, expanded


def downloads(lm: LanguageModel, report: Report) -> None:
    """Both forms of the edit. The files are made when the button is pressed."""
    edit, request = report.edit, report.request
    name = f"{edit.method}-{request.prompt.subject}-{request.target_new.strip()}".replace(" ", "_")
    with st.container(horizontal=True):
        what = "Factors and settings in one small file, to be opened below or with rome_core.load_edit."
        download("Download the edit", lambda: edit_file(edit), f"{name}.safetensors", "download-edit", what)
        what = (
            "A zip with an adapter that names its base: AutoPeftModelForCausalLM loads both. The default model's base "
            "is its folder in this machine's cache; elsewhere give the model to PeftModel.from_pretrained."
        )
        download("Download as LoRA adapter", lambda: adapter_zip(edit), f"{name}-adapter.zip", "download-adapter", what)
    st.caption(f"The file belongs to {literal(lm.name)} and is refused by any other model.")
    offer_merged(lm, report)


def offer_merged(lm: LanguageModel, report: Report) -> None:
    """Write the whole edited model to a folder of the server, as a job."""
    with st.expander("Write the edited model to a folder"):
        below = len(report.below)
        st.caption(
            "The whole model with this edit"
            + (f" and the {below} below it" if below else "")
            + " in its weights, in parts, as transformers loads it. The loaded model stays as it is."
        )
        with st.container(horizontal=True, vertical_alignment="bottom"):
            folder = public.path_field(
                "Folder on the server",
                value=str(cache_dir() / "merged" / f"{report.edit.method}-{report.edit.id}"),
                key=f"merged-folder-{report.edit.id}",
                help="A new or an empty one.",
                persist_state="session",
            )
            pressed = st.button("Write", key="merged-write", disabled=public.is_public())
        key = ("merged", report.edit.id)
        if pressed:
            try:
                target = new_folder(folder)
            except RomeError as error:
                track.show_error(error)
                return
            edits = (*report.below, report.edit)
            session.start_job(key, f"Writing {target.name}", lambda job: export_merged(lm, edits, target))
        if job := session.find_job(key):
            track.panel(job)


def new_folder(text: str) -> Path:
    """The folder that was typed. Raises EditError if there is something in it already."""
    target = expanded(text.strip())
    if not text.strip() or not target.is_absolute():
        raise EditError(f"'{text.strip()}' is no full path.", "", "Write the folder from the root on.")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise EditError(f"'{target}' is there already and not empty.", "", "Name another folder.")
    return target


def edit_file(edit: Edit) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "edit.safetensors"
        save_edit(edit, path)
        return path.read_bytes()


def adapter_zip(edits: Edit | Sequence[Edit], under: str = "", files: Mapping[str, bytes] | None = None) -> bytes:
    """One adapter of all edits in a folder of a zip, behind other files."""
    packed = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in (files or {}).items():
            archive.writestr(name, content)
        export_adapter(edits, folder, base_to_name(edits))
        for path in sorted(Path(folder).rglob("*")):
            archive.write(path, Path(under) / path.relative_to(folder))
    return packed.getvalue()


def base_to_name(edits: Edit | Sequence[Edit]) -> str | None:
    """What an adapter names as its base: None is where the model was loaded from, of which strangers get the name."""
    first = edits if isinstance(edits, Edit) else next(iter(edits), None)
    place = first.source.place if first and first.source else ""
    return Path(place).name if public.is_public() and Path(place).is_absolute() else None


def open_saved(lm: LanguageModel) -> Edit | None:
    """An edit that was uploaded just now: once for each file, and not again on every rerun."""
    file = st.file_uploader("Open a saved edit of this model", type=["safetensors"], key="edit-file")
    if file is None or file.file_id in session.taken_uploads():
        return None
    session.taken_uploads().add(file.file_id)
    try:
        public.check_upload([file.size])
        return read_edit(lm, file.getvalue(), Path(file.name).name)
    except RomeError as error:
        track.show_error(error)
        return None


def read_edit(lm: LanguageModel, data: bytes, name: str = "edit.safetensors") -> Edit:
    """An edit from the bytes of a file; messages call it by its name. A place on a machine that it names is forgotten:
    a file that somebody brings opens no other one."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(data)
        edit = load_edit(path, lm)
    named: Any = edit.config
    return replace(edit, config=replace(named, checkpoint=None)) if hasattr(named, "checkpoint") else edit
