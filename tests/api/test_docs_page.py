"""`/docs` in a browser: authorize with a token, run a search, see the answer."""

import json
from pathlib import Path

import pytest

from tests.api.conftest import MODEL, Service
from tests.api.wire import listening
from tests.devtools import open_page
from tests.faults.browser import NAMES, chromium

_FUNCTIONS = """
window.violations = [];
document.addEventListener("securitypolicyviolation",
  event => violations.push(event.violatedDirective + " " + event.blockedURI));
async function found(selector, scope = document) {
  for (let tries = 0; tries < 600; tries++) {
    const element = scope.querySelector(selector);
    if (element) return element;
    await new Promise(done => setTimeout(done, 50));
  }
  throw new Error("there is no " + selector);
}
async function click(selector, scope) { (await found(selector, scope)).click(); }
async function fill(selector, value, scope) {
  const element = await found(selector, scope);
  const prototype = Object.getPrototypeOf(element);
  Object.getOwnPropertyDescriptor(prototype, "value").set.call(element, value);
  element.dispatchEvent(new Event("input", {bubbles: true}));
  element.dispatchEvent(new Event("change", {bubbles: true}));
  element.dispatchEvent(new FocusEvent("focusout", {bubbles: true}));
}
"""
_AUTHORIZE = """(async () => {
  await click(".auth-wrapper .authorize");
  await fill(".auth-container input", TOKEN);
  await click(".auth-container button.authorize");
  await click(".auth-container button.btn-done");
})()"""
_SEARCH = """(async () => {
  const search = await found("#operations-search-" + OPERATION);
  await click(".opblock-summary-control", search);
  await fill("tr[data-param-name=model_version] input", MODEL, search);
  await fill("textarea.body-param__text", BODY, search);
  await click("button.execute", search);
  const answer = await found(".live-responses-table .response", search);
  return [answer.querySelector(".response-col_status").textContent.trim(),
    (await found(".highlight-code code", answer)).textContent];
})()"""


@pytest.mark.skipif(chromium() is None, reason=f"needs Chromium: none of {', '.join(NAMES)}")
async def test_a_search_is_run_from_the_page(service: Service, tmp_path: Path) -> None:
    """With a token given once, nothing from elsewhere, and no breach of the page's own policy."""
    binary = chromium()
    assert binary is not None
    values = {
        "TOKEN": service.pool.token(),
        "MODEL": MODEL,
        "OPERATION": "ModelsModelVersionSearchSearch",
        "BODY": json.dumps({"product_id": "plain", "k": 3}),
    }
    constants = "".join(f"const {name} = {json.dumps(value)};" for name, value in values.items())
    async with listening(service) as listener, open_page(binary, tmp_path) as page:
        for domain in ("Page", "Runtime", "Network"):
            await page.send(f"{domain}.enable")
        await page.send("Page.addScriptToEvaluateOnNewDocument", source=_FUNCTIONS + constants)
        origin = f"http://127.0.0.1:{listener.port}"
        await page.send("Page.navigate", url=f"{origin}/docs")
        await page.evaluate("found('.auth-wrapper .authorize').then(() => true)")
        await page.evaluate(_AUTHORIZE)
        status, answer = await page.evaluate(_SEARCH)
        assert status.startswith("200")
        assert [set(hit) for hit in json.loads(answer)["neighbors"]] == [
            {"product_id", "score"}
        ] * 3
        assert await page.evaluate("violations") == []
        asked = {
            event["params"]["request"]["url"]
            for event in page.events
            if event["method"] == "Network.requestWillBeSent"
        }
        assert asked
        assert not [url for url in asked if not url.startswith((origin, "data:"))]
