"""What a URL names, by its protocol; each kind of place is imported where it is asked for."""

from taskvec.urls import protocol_of
from taskvec.weights.remote.place import Place


def find_place(url: str) -> Place:
    """What a URL names: a folder, or a file and what lies beside it.

    Raises: InputError if there is nothing; MissingExtra for a package that is not installed.
    """
    protocol = protocol_of(url)
    if protocol in ("http", "https"):
        from taskvec.weights.remote.guessing import find_on_server

        return find_on_server(url)
    if protocol == "hf":
        from taskvec.weights.remote.hub import find_on_hub

        return find_on_hub(url)
    from taskvec.weights.remote.store import find_in_store

    return find_in_store(url)
