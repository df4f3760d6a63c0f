"""A browser as tests drive it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from screenshots import prefer, set_width

if TYPE_CHECKING:
    from selenium.webdriver import Chrome


def _of(messages: list[dict[str, Any]], method: str) -> list[dict[str, Any]]:
    return [message["params"] for message in messages if message["method"] == method]


@dataclass(frozen=True)
class Browser:
    """A browser that knows what it was asked for and what it complained of."""

    chrome: "Chrome"

    def open(
        self, page: Path, *, width: int = 1400, height: int = 900, scheme: str = "light", scripts: bool = True
    ) -> None:
        """Show a page anew, in a window of this size; complaints about earlier ones are forgotten."""
        self.chrome.get("about:blank")
        set_width(self.chrome, width, height)
        prefer(self.chrome, scheme)
        self.chrome.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": not scripts})
        self.chrome.execute_cdp_cmd("Emulation.setFocusEmulationEnabled", {"enabled": True})
        self.complaints(), self.requests()
        self.chrome.get(page.absolute().as_uri())

    def complaints(self) -> list[str]:
        """What the console holds since this was asked last."""
        return [entry["message"] for entry in self.chrome.get_log("browser")]  # type: ignore[no-untyped-call]

    def requests(self) -> list[str]:
        """Addresses asked for since this was asked last, but for those that the content policy stopped."""
        log = self.chrome.get_log("performance")  # type: ignore[no-untyped-call]
        messages = [json.loads(entry["message"])["message"] for entry in log]
        sent = {of["requestId"]: of["request"]["url"] for of in _of(messages, "Network.requestWillBeSent")}
        for failed in _of(messages, "Network.loadingFailed"):
            if failed.get("blockedReason") == "csp":
                sent.pop(failed["requestId"], None)
        return [url for url in sent.values() if not url.startswith(("data:", "about:"))]

    def js(self, script: str, *given: object) -> Any:
        """What a function body returns."""
        return self.chrome.execute_script(script, *given)

    def press(self, *keys: str) -> None:
        """Keys of the keyboard, by name or as they are, wherever the focus is."""
        from selenium.webdriver import ActionChains, Keys

        for key in keys:
            ActionChains(self.chrome).send_keys(getattr(Keys, key, key)).perform()

    def wait(self, milliseconds: int = 200) -> None:
        """Until the page has drawn what was asked of it."""
        self.chrome.execute_async_script("setTimeout(arguments[1], arguments[0])", milliseconds)

    def boxes(self, selector: str) -> list[tuple[str, float, float, float, float]]:
        """Where elements that are seen lie on the page: how they open, left, top, right, bottom."""
        return [tuple(found) for found in self.js(_BOXES, selector)]


_BOXES = """
const box = (element) => {
  const {left, top, right, bottom} = element.getBoundingClientRect();
  return [left + scrollX, top + scrollY, right + scrollX, bottom + scrollY];
};
return [...document.querySelectorAll(arguments[0])]
  .filter((element) => element.checkVisibility() && !element.closest(".unseen"))
  .map((element) => [[...element.outerHTML].slice(0, 80).join(""), ...box(element)]);
"""
