"""``taskvec push``."""

import sys
from typing import Annotated

from cyclopts import Parameter

from taskvec.cli._common import Json, Quiet, print_json, print_table

_Flag = Annotated[bool, Parameter(negative=())]


def push(
    path: str,
    repository: str,
    /,
    *,
    private: _Flag = False,
    revision: str | None = None,
    message: str | None = None,
    dry_run: _Flag = False,
    force: _Flag = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Upload a task vector, an adapter or a model to the hub, with its model card.

    Examples: `taskvec push sst2.safetensors me/sst2-vector --dry-run` shows the files and the card,
    `taskvec push merged me/merged --private` uploads. It is one commit: all or nothing. Log in before with
    `hf auth login`, or set `HF_TOKEN`. Then `me/sst2-vector` is a vector wherever one is taken.

    Args:
        path: A safetensors file, or a folder: its weights and what loaders need beside them go. Paths of this
            machine in headers and manifests are cut down to their last part.
        repository: ORG/NAME; made if it is not there.
        private: Make it private; one that exists and is public is refused.
        revision: A branch, made from main if it is not there. Default: main.
        message: Of the commit.
        dry_run: Show what would be uploaded; the hub is not asked.
        force: Replace weights that are there. Those of other names are deleted.
    """
    from taskvec.edits.upload import check_name, prepared
    from taskvec.weights.pushing import push_files

    name = check_name(repository)
    with prepared(path, name) as upload:
        facts = {
            "repository": name,
            "revision": revision or "main",
            "kind": upload.kind,
            "files": upload.sizes,
            "bytes": sum(upload.sizes.values()),
        }
        if not dry_run:
            facts["commit"] = push_files(
                upload.files,
                name,
                private=private,
                revision=revision,
                message=message or upload.message,
                force=force,
                quiet=quiet or not sys.stderr.isatty(),
            )
        if json:
            print_json({**facts, "card": upload.card})
            return
        rows = [(place, f"{size:,} bytes") for place, size in upload.sizes.items()]
        print_table(None, [upload.kind, f"{name} ({facts['revision']})"], rows)
        if dry_run:
            sys.stdout.write(f"\n{upload.card}\nNothing was uploaded; leave --dry-run out to do it.\n")
        else:
            sys.stdout.write(f"Pushed: {facts['commit']}\n")
