"""The local page in a browser: narrow and wide, by keyboard alone, with and without its script."""

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from methods.cascode.search.page import PageServer
from methods.cascode.search.query import Request
from tests.unit.cascode_search_toy import build, searcher, write_tree
from tests.unit.test_cascode_search_page import EVIL, serving

webdriver = pytest.importorskip("selenium.webdriver")
wait = pytest.importorskip("selenium.webdriver.support.wait")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs Chromium and its driver")

ENTER, TAB, ESCAPE, DOWN, UP = "\ue007", "\ue004", "\ue00c", "\ue015", "\ue013"
CONTROL = "\ue009"
WIDE, NARROW = 1400, 400
LONG = "wide_" * 60
FILES = {
    "config.py": "def read_settings(settings):\n"
    + "".join(f"    step_{n}(settings)\n" for n in range(2, 12)),
    f"{'deep_' * 20}/{'folder_' * 20}/wide.py": f"def read_{LONG}(path):\n    return '{LONG}'\n",
    "page.py": f'def read_page():\n    """Show it. {EVIL}"""\n    return 1\n',
}
FOCUS = "const e = document.activeElement; return e.name || e.textContent.trim() || e.tagName"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageServer]:
    root = write_tree(tmp_path_factory.mktemp("browser").resolve(), FILES)
    build(root)
    with serving(searcher(root), Request("", lines=9)) as server:
        yield server


@pytest.fixture(scope="module")
def started() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def browser(started: Any, server: PageServer) -> Iterator[Any]:
    resize(started, WIDE)
    started.get(server.url)
    yield started
    refused = [entry for entry in started.get_log("browser") if "Security Policy" in str(entry)]
    assert not refused


def resize(browser: Any, width: int) -> None:
    """The window itself cannot be as narrow as a telephone."""
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def press(browser: Any, *keys: str) -> None:
    for key in keys:
        webdriver.ActionChains(browser).send_keys(key).perform()


def focus(browser: Any) -> str:
    """The name or text of what has the focus."""
    return browser.execute_script(FOCUS)


def results(browser: Any) -> list[Any]:
    return browser.find_elements("css selector", "article")


def until(browser: Any, condition: Callable[[], object]) -> None:
    wait.WebDriverWait(browser, 10, 0.05).until(lambda _: condition())


def said(browser: Any) -> str:
    until(browser, lambda: browser.find_element("id", "said").text)
    return browser.find_element("id", "said").text


@pytest.mark.parametrize("width", [WIDE, NARROW])
@pytest.mark.parametrize(
    "path",
    ["", "?q=read", f"?q={LONG}", "?q=read&path=nowhere", "?q=read&language=cobol", f"no/{LONG}"],
)
def test_no_scrolling_sideways(browser, server, width, path):
    resize(browser, width)
    browser.get(f"{server.url}{path}")
    widths = "const e = document.documentElement; return [e.scrollWidth, e.clientWidth, innerWidth]"
    needed, there, inner = browser.execute_script(widths)
    assert needed <= there <= inner == width
    for block in browser.find_elements("css selector", ".code"):
        assert block.rect["x"] + block.rect["width"] <= there


def test_a_session_by_keyboard(browser):
    until(browser, lambda: focus(browser) == "q")
    press(browser, "jk/c", ESCAPE)
    assert focus(browser) != "q"
    field = browser.find_element("name", "q")
    assert field.get_property("value") == "jk/c", "keys are letters in a field"
    press(browser, "/", "read settings", ENTER)
    complete = "return document.readyState == 'complete'"
    until(browser, lambda: results(browser) and browser.execute_script(complete))
    first, second, third = results(browser)
    assert "config.py:1" in first.text
    assert focus(browser).startswith("tenfold-search"), "on the page, ready for keys"
    press(browser, "c")
    press(browser, "j")
    assert browser.switch_to.active_element == first
    assert "step_7" not in first.text
    press(browser, ENTER)
    assert "step_7" in first.text
    press(browser, " ")
    assert "step_7" not in first.text
    press(browser, "c")
    assert said(browser) == "copied config.py:1"
    for keys, expected in (("j", second), (DOWN, third), ("j", third), (UP, second), ("kk", first)):
        press(browser, *keys)
        assert browser.switch_to.active_element == expected
    press(browser, "/")
    assert focus(browser) == "q"
    press(browser, ESCAPE)
    assert browser.find_element("name", "q").get_property("value") == "read settings"


def test_the_order_of_tabs(browser, server):
    until(browser, lambda: focus(browser) == "q")
    order = []
    for _ in range(9):
        order.append(focus(browser))
        press(browser, TAB)
    assert order[:6] == ["q", "Search", "kind", "language", "path", "top"]
    assert len({*order[6:]}) == 3, "the examples"
    browser.get(f"{server.url}?q=read+settings")
    press(browser, "j", TAB)
    assert focus(browser) == "copy path"
    press(browser, ENTER)
    assert said(browser) == "copied config.py:1"
    press(browser, TAB)
    assert focus(browser) == "open in editor"
    press(browser, TAB)
    assert focus(browser) == "3 more lines"
    press(browser, ENTER)
    assert "step_7" in results(browser)[0].text
    press(browser, TAB)
    assert focus(browser) == "copy path"
    press(browser, "k")
    assert browser.switch_to.active_element == results(browser)[0]


@pytest.mark.parametrize("clipboard", [True, False])
def test_copying(browser, server, clipboard):
    """Through the clipboard, and by selecting where a browser does not lend it."""
    browser.get(f"{server.url}?q=read+settings")
    if not clipboard:
        browser.execute_script("Object.defineProperty(navigator, 'clipboard', {})")
    press(browser, "j", "c")
    assert said(browser) == "copied config.py:1"
    press(browser, "/")
    webdriver.ActionChains(browser).key_down(CONTROL).send_keys("v").key_up(CONTROL).perform()
    assert browser.find_element("name", "q").get_property("value") == "config.py:1"


def test_without_its_script(browser, server):
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get(f"{server.url}?q=read+settings")
        first = results(browser)[0]
        assert "copy path" not in first.text
        assert "Keys:" not in browser.find_element("tag name", "body").text
        first.find_element("tag name", "summary").click()
        assert "step_7" in first.text
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_errors_keep_the_query(browser, server):
    browser.get(f"{server.url}?q=read+%3Cb%3E&language=cobol&path=src&top=7")
    values = [browser.find_element("name", n).get_property("value") for n in ("q", "path", "top")]
    assert values == ["read <b>", "src", "7"]
    until(browser, lambda: focus(browser) == "language")
    assert "known are c, cpp" in browser.find_element("id", "error").text


def test_a_page_that_is_none(browser, server):
    browser.get(f"{server.url}{EVIL}")
    assert "not a page of the tool" in browser.find_element("tag name", "main").text
    press(browser, TAB, TAB, ENTER)
    until(browser, lambda: browser.current_url == server.url)
