"""Files put on the hub, in one commit; the client is ``huggingface_hub``."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from taskvec.errors import InputError, OutputExists, TaskvecError, and_more, optional
from taskvec.weights.hub import bars

_WEIGHTS = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pt", ".pth", ".gguf")


def push_files(
    files: Mapping[str, Path | bytes],
    name: str,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str,
    force: bool = False,
    quiet: bool = True,
) -> str:
    """Commit files to a repository, which is made if it is not there; the URL of the commit.

    Honours what ``huggingface_hub`` reads from the environment: ``HF_TOKEN``, ``HF_ENDPOINT``, ``HF_HOME``.

    Args:
        files: place in the repository -> file, or what is in it.
        name: ``org/name``.
        private: make it private; a public one that exists is refused.
        revision: a branch, made from ``main`` if it is not there; ``main`` by default.
        force: replace the weights that the branch holds; those of other names are deleted.
        quiet: show no progress.

    Raises: MissingExtra without ``huggingface_hub``; OutputExists for weights that are there; InputError for
        what the hub refuses; TaskvecError if it cannot be reached. What is committed is all or nothing.
    """
    client = optional("huggingface_hub", "taskvec push: needs the hub's client: pip install 'taskvec[hf]'")
    api = client.HfApi()
    branch = revision or "main"
    with _in_words(name), bars(quiet=quiet):
        api.create_repo(name, private=private or None, exist_ok=True)
        if private and not api.repo_info(name).private:
            raise OutputExists(
                f"{name}: exists and is public; make it private on its settings page, or choose another name"
            )
        fresh = _is_made(api, name, branch)
        head = api.repo_info(name, revision=branch)
        there = [of.rfilename for of in head.siblings or () if of.rfilename.endswith(_WEIGHTS)]
        if there and not (force or fresh):
            raise OutputExists(
                f"{name}: {branch} holds weights already, {there[0]}{and_more(there)}; --force (force=True) "
                "replaces them, --revision (revision=…) puts these on a branch of their own"
            )
        commit = api.create_commit(
            name,
            [
                *(client.CommitOperationDelete(place) for place in there if place not in files),
                *(client.CommitOperationAdd(place, _source(source)) for place, source in files.items()),
            ],
            commit_message=message,
            revision=branch,
            parent_commit=head.sha,
        )
    return str(commit.commit_url)


def _is_made(api: Any, name: str, branch: str) -> bool:
    """Make a branch; false if it is there already."""
    if branch.startswith("refs/") or branch in {of.name for of in api.list_repo_refs(name).branches}:
        return False
    api.create_branch(name, branch=branch, exist_ok=True)
    return True


def _source(source: Path | bytes) -> str | bytes:
    return source if isinstance(source, bytes) else str(source)


@contextmanager
def _in_words(name: str) -> Iterator[None]:
    """What the client raises, of which there are many kinds, in one line."""
    try:
        yield
    except TaskvecError:
        raise
    except Exception as error:
        raise _refusal(name, error) from None


def _refusal(name: str, error: BaseException) -> TaskvecError:
    causes = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    status = next((code for code in map(_status, causes) if code), None)
    match status:
        case 401:
            return InputError(
                f"{name}: the hub does not know who you are (401); log in with: hf auth login, or set "
                "HF_TOKEN to a token that may write"
            )
        case 403:
            return InputError(f"{name}: your token may not write there (403); {_first_line(error)}")
        case 412:
            return TaskvecError(f"{name}: changed while this was uploaded (412), nothing was; push again")
        case int() if 400 <= status < 500 and status not in (408, 429):
            return InputError(f"{name}: refused by the hub ({status}); {_first_line(error)}")
    if type(error).__name__ == "HFValidationError":
        return InputError(f"{name}: no name for the hub; {_first_line(error)}")
    if type(error).__name__ == "OfflineModeIsEnabled":
        return InputError(f"{name}: HF_HUB_OFFLINE forbids to reach the hub; unset it")
    return TaskvecError(
        f"{name}: not uploaded ({_first_line(causes[-1])}); nothing was committed, push again: what was sent "
        "already is not sent again"
    )


def _status(error: BaseException) -> int | None:
    code = getattr(getattr(error, "response", None), "status_code", None)
    return code if isinstance(code, int) else None


def _first_line(error: BaseException) -> str:
    """What an error says, without a token that it may repeat."""
    token = optional("huggingface_hub", "").get_token()
    said = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    return said.replace(token, "…") if token else said
