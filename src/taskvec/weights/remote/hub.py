"""Models on the Hugging Face hub, read in place: the revision becomes a commit once, for all that is read."""

import re
import time
from importlib import import_module
from typing import Any
from urllib.parse import unquote

from taskvec.errors import InputError, optional
from taskvec.reading import printable
from taskvec.urls import said
from taskvec.weights.remote import file
from taskvec.weights.remote.place import WEIGHTS, Place
from taskvec.weights.remote.web import LATER, State, WebFile, ask_sizes

_REFERENCE = re.compile(
    r"hf://(models/)?(?P<name>[A-Za-z0-9][\w.-]*/[\w.-]+)"
    r"(@(?P<revision>refs/(pr|convert)/[\w.-]+|[\w.%-]+))?(/(?P<inner>[^@?#]*))?"
)
_OTHERS = ("datasets/", "spaces/", "buckets/")

_KNOWN = {
    "RepositoryNotFoundError": "no such model, or a private one, which takes a token (hf auth login)",
    "GatedRepoError": "its authors give access; ask for it on its page, and log in (hf auth login)",
    "RevisionNotFoundError": "no such revision",
    "OfflineModeIsEnabled": "offline mode is on (HF_HUB_OFFLINE); name a folder, or ORG/NAME in the cache",
}
"""What errors of the hub client mean."""


def find_on_hub(url: str) -> Place:
    """A model, a folder in it, or a file, at the commit that the revision stands for now.

    Honours what ``huggingface_hub`` reads from the environment: the token, ``HF_ENDPOINT``, offline mode.

    Raises: InputError if it cannot be had; MissingExtra without ``huggingface_hub``.
    """
    match = _REFERENCE.fullmatch(url.partition("#")[0])
    if match is None or match["name"].startswith(_OTHERS) or match["name"] + "/" in _OTHERS:
        raise InputError(f"{said(url)}: expected a model, hf://ORG/NAME[@REVISION][/FOLDER_OR_FILE]")
    revision = unquote(match["revision"] or "") or None
    if ".." in (revision or "").split("/"):
        raise InputError(f"{said(url)}: a revision of steps upward, expected a branch, a tag or a commit")
    hub = optional("huggingface_hub", f"{said(url)}: for models of the hub: pip install 'taskvec[hf]'")
    info = _info(hub, said(url), match["name"], revision)
    return _within(hub, url, match["name"], info, (match["inner"] or "").strip("/"))


def _info(hub: Any, where: str, name: str, revision: str | None, tries: int = 3) -> Any:
    try:
        return hub.HfApi().model_info(name, revision=revision, files_metadata=True)
    except Exception as error:  # the hub client raises many kinds, from HTTP errors to value errors
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in LATER and tries > 1:
            time.sleep(file.PAUSE)
            return _info(hub, where, name, revision, tries - 1)
        what = _KNOWN.get(type(error).__name__) or next(iter(str(error).strip().splitlines()), "")
        raise InputError(
            f"{where}: not to be had from the hub ({printable(what) or type(error).__name__})"
        ) from None


def _within(hub: Any, url: str, name: str, info: Any, inner: str) -> Place:
    """The part of a model that a URL names."""
    headers = import_module("huggingface_hub.utils").build_hf_headers()
    there = {entry.rfilename: entry for entry in info.siblings or ()}
    chosen = inner if inner in there else ""
    folder = inner.rpartition("/")[0] if chosen else inner
    home = f"hf://{name}@{info.sha}" + (f"/{folder}" if folder else "")
    start = f"{folder}/" if folder else ""
    files: dict[str, WebFile] = {}
    for path, entry in there.items():
        if path.startswith(start):
            place = path.removeprefix(start)
            address = hub.hf_hub_url(name, path, revision=info.sha)
            state = None if entry.size is None else State(entry.size)
            files[place] = WebFile(address, f"{home}/{place}", headers, state, entry.blob_id or info.sha)
    if not files:
        raise InputError(f"{said(url)}: no such file or folder in the model")
    ask_sizes([held for place, held in files.items() if not place.endswith(WEIGHTS)])
    return Place(home, files, chosen.removeprefix(start) or None)
