"""The page in Chromium: typing, more like this, selecting and exporting by keyboard, both languages, a phone."""

import threading
from collections.abc import Iterator

import pytest

from search.index import Index
from search.page.serve import listen, server_of
from search.page.texts import TEXTS
from tests.search.color_encoder import COLORS, ColorEncoder, draw
from tests.search.page.browser import CHROMIUM, Browser

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
NAMES = "[...document.querySelectorAll('#gallery b')].map((b) => b.textContent)"
NEW = "!gallery.classList.contains('old') && gallery.children.length"
SAVED = """
saved = [];
URL.createObjectURL = (blob) => { saved.push(blob); return "#"; };
HTMLAnchorElement.prototype.click = function () { saved.push(this.download); };
"""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("browsed")
    for color in COLORS:
        draw(folder / "photos" / "a folder with a long name <b>" / f"{color}-{'long' * 12}.png", color)
    index = Index.open(folder / "index")
    index.add_folder(folder / "photos", ColorEncoder())
    listening = listen("127.0.0.1", 0)
    server = server_of(index, "127.0.0.1")
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join(30)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser.started(tmp_path_factory.mktemp("profile")) as started:
        yield started


def first(browser: Browser) -> str:
    return str(browser.run(NAMES)[0]).partition("-")[0]


def test_everything_is_done_by_keyboard(browser: Browser, address: str) -> None:
    browser.open(f"{address}/?lang=en")
    browser.run(SAVED)
    browser.type("a coat in green")  # the sentence has the focus
    browser.wait(NEW)
    assert first(browser) == "green"
    assert len(browser.run(NAMES)) == len(COLORS)
    assert browser.wait("document.querySelector('#gallery img').naturalWidth") == 12
    browser.press("ArrowDown")
    browser.press("ArrowRight")
    second = browser.run("document.activeElement.closest('li').dataset.id")
    assert second == browser.run("gallery.children[1].dataset.id")
    browser.press(" ")
    browser.press("ArrowLeft")
    browser.press(" ")
    assert browser.run("selection.innerText").startswith("2 selected")
    browser.press("m")
    browser.wait(f"location.search.includes('similar=') && {NEW} === {len(COLORS) - 1}")
    assert "green" in browser.run("like.innerText")
    assert first(browser) == "yellow"
    browser.run("history.back()")
    browser.wait(f"location.search.includes('q=') && {NEW} === {len(COLORS)}")
    assert browser.run("document.querySelectorAll('#gallery input:checked').length") == 2, "the selection stays"
    for kind in ("zip", "csv"):
        browser.run(f"selection.querySelector('[data-as={kind}]').click()")
        browser.wait(f"saved.includes('images.{kind}')")
    zipped, table = browser.run("Promise.all([saved[0].text().then((t) => t.slice(0, 2)), saved[2].text()])")
    assert zipped == "PK"
    assert table.count(".png") == 2
    browser.press("Escape")
    assert browser.run("document.activeElement.id") == "sentence"
    browser.run("sentence.value = ''")
    browser.type("blue")
    browser.wait(f"location.search.includes('q=blue') && {NEW}")
    assert first(browser) == "blue"


@pytest.mark.parametrize("language", TEXTS)
@pytest.mark.parametrize("width", [1280, 360])
def test_the_page_fits_and_the_other_language_keeps_the_question(
    browser: Browser, address: str, language: str, width: int
) -> None:
    browser.open(f"{address}/?lang={language}&q=red", width=width, height=800)
    browser.wait(NEW)
    assert first(browser) == "red"
    browser.run("gallery.querySelector('input').click()")
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert TEXTS[language]["like"] in browser.run("gallery.innerText")
    browser.run("other.click()")
    other = "en" if language == "vi" else "vi"
    browser.wait(f"document.documentElement?.lang === '{other}' && document.readyState === 'complete' && {NEW}")
    assert first(browser) == "red"
    assert browser.run("sentence.value") == "red"


def test_a_folder_and_an_error_are_shown(browser: Browser, address: str) -> None:
    browser.open(f"{address}/?lang=vi&q=red")
    browser.wait(NEW)
    browser.run("folder.selectedIndex = 1; folder.dispatchEvent(new Event('change'))")
    browser.wait(f"location.search.includes('folder=') && {NEW}")
    assert len(browser.run(NAMES)) == len(COLORS)
    browser.run("begin({ kind: 'picture', file: new File(['no picture'], 'x.png') })")
    browser.wait("told.classList.contains('failed')")
    assert browser.run("told.textContent") == TEXTS["vi"]["unreadable"]
    browser.complaints[:] = [told for told in browser.complaints if "415" not in told]


def test_nothing_is_asked_of_another_server(browser: Browser, address: str) -> None:
    asked = [request for request in browser.requests if not request.startswith(("data:", "blob:", "about:"))]
    assert len(asked) > 20
    assert all(request.startswith(address) for request in asked)
    assert browser.complaints == []
