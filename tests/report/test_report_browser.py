"""The page in a real browser: sorting, filtering, provenance, keyboard, phone, paper; and that it asks for nothing."""

import pytest
import report_fixtures as fake
from browser import Browser, chromium

from vlp_bench.report import build_report

pytestmark = pytest.mark.skipif(
    chromium() is None, reason="no Chromium on this machine (Debian: apt-get install chromium)"
)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    runs = fake.write_everything(tmp_path_factory.mktemp("runs"))
    return build_report(runs, tmp_path_factory.mktemp("out") / "report", resamples=50).index


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    started = Browser(tmp_path_factory.mktemp("profile"))
    yield started
    started.close()


@pytest.fixture
def seen(browser, page):
    """The page, freshly loaded; whatever is done to it must not complain or ask for anything."""
    browser.visit(page)
    yield browser
    browser.run("1")  # hear what is left to hear
    assert browser.complaints == []
    assert browser.requests == [page.as_uri()]


def test_the_watch_sees_what_it_watches_for(browser, page):
    browser.visit(page)
    browser.run("console.error('said'); setTimeout(() => { throw new Error('thrown'); });")
    browser.run(
        "new Promise((done) => { const i = new Image(); i.onerror = done; i.src = 'http://127.0.0.1:9/x.png'; })"
    )
    assert sum(word in " ".join(browser.complaints) for word in ("said", "thrown")) == 2
    assert browser.requests[1:] == ["http://127.0.0.1:9/x.png"]


BOARD = "document.querySelector('article[data-target=openi] table.board')"


def test_columns_sort_both_ways_and_dashes_and_floor_stay_last(seen):
    column = f"[...{BOARD}.querySelectorAll('tbody tr')].map((row) => row.cells[1].dataset.sort)"
    names = f"[...{BOARD}.querySelectorAll('tbody tr')].map((row) => row.cells[0].textContent)"
    for order, reverse in (("descending", True), ("ascending", False)):
        seen.run(f"{BOARD}.querySelectorAll('thead button')[1].click()")
        *values, floor = [float(v) for v in seen.run(column)]
        assert values == sorted(values, reverse=reverse)
        assert floor == 0.5
        assert "trivial" in seen.run(names)[-1]
        assert seen.run(f"{BOARD}.querySelectorAll('th')[1].getAttribute('aria-sort')") == order
    plain = "document.querySelector('details.more table.plain')"
    seen.run(f"{plain}.querySelectorAll('thead button')[2].click()")
    assert seen.run(f"{plain}.querySelectorAll('th')[2].getAttribute('aria-sort')") == "descending"


def test_tables_of_groups_sort_by_their_numbers_with_dashes_last(seen):
    table = "[...document.querySelectorAll('table.plain')].find((t) => t.textContent.includes('few'))"
    seen.run(f"{table}.querySelectorAll('thead button')[3].click()")
    texts = seen.run(f"[...{table}.querySelectorAll('tbody tr')].map((row) => row.cells[3].textContent)")
    known = [float(text.split()[0]) for text in texts if not text.startswith("–")]
    assert known == sorted(known, reverse=True)
    assert [text.startswith("–") for text in texts] == sorted(text.startswith("–") for text in texts)


def visible(kind):
    return f"[...document.querySelectorAll('{kind}')].filter((e) => e.offsetParent !== null).length"


def write(name, value):
    """Fill in a field of the filter as a person does."""
    return (
        f"(() => {{ const field = document.querySelector('.filter [name={name}]'); field.value = {value!r};"
        "field.dispatchEvent(new Event('input', { bubbles: true })); })()"
    )


def test_filters_leave_what_was_asked_for_and_say_so(seen):
    articles, rows = visible("#results > article"), visible("table.board tbody tr:not(.trivial)")
    everything = seen.run(articles), seen.run(rows)
    seen.run(write("backbone", "mgca"))
    names = seen.run(
        "[...document.querySelectorAll('table.board tbody tr:not(.trivial)')].filter((r) => r.offsetParent)"
        ".map((r) => r.cells[0].textContent)"
    )
    assert 0 < len(names) < everything[1]
    assert all("mgca" in name for name in names)
    seen.run(write("backbone", ""))
    seen.run(write("task", "Retrieval"))
    kept = seen.run(articles)
    assert 0 < kept < everything[0]
    assert f"{kept} of {everything[0]} leaderboards" in seen.run("document.querySelector('.filter output').textContent")
    # a link into what was filtered away brings it back
    seen.run("location.hash = '#' + document.querySelector('article[data-task=Classification]').id")
    seen.run("new Promise((done) => setTimeout(done, 100))")
    assert (seen.run(articles), seen.run(rows)) == everything


def test_a_value_leads_to_its_provenance_and_back(seen):
    for table in ("table.board", "details.more table.plain"):
        where = seen.run(f"document.querySelector('{table} td a').hash")
        seen.run(f"document.querySelector('{table} td a').click()")
        seen.run("new Promise((done) => setTimeout(done, 100))")
        block = f"document.getElementById('{where[1:]}')"
        assert seen.run(f"{block}.offsetParent !== null && {block}.getBoundingClientRect().top < innerHeight")
        told = seen.run(f"{block}.textContent")
        for word in ("Command", "vlp-bench evaluate", "Commit", "3f9c2ab41d7e5c60aa41", "Seeds", "Wall time", "torch"):
            assert word in told
        assert seen.run(f"{block}.closest('details').querySelector('summary') === document.activeElement")
        seen.run(f"{block}.querySelector('a[href^=\"#\"]').click()")
        seen.run("new Promise((done) => setTimeout(done, 100))")
        assert seen.run("document.getElementById(location.hash.slice(1)).getBoundingClientRect().top < innerHeight")


def test_every_value_of_every_leaderboard_has_a_place(seen):
    assert seen.run(
        "[...document.querySelectorAll('table a[href^=\"#\"]')].every((a) => document.getElementById(a.hash.slice(1)))"
    )
    assert seen.run(
        "[...document.querySelectorAll('table.board tbody tr:not(.trivial) .value')].every((v) => v.querySelector('a'))"
    )


def test_keys_alone_reach_the_skip_link_and_sort(seen):
    seen.press("Tab", 9)
    assert seen.run("document.activeElement.className") == "skip"
    assert seen.run("document.activeElement.getBoundingClientRect().left >= 0")
    seen.run(f"{BOARD}.querySelector('thead button').focus()")
    seen.press("Enter", 13, "\r")
    assert seen.run(f"{BOARD}.querySelector('th').getAttribute('aria-sort')") == "ascending"


@pytest.mark.parametrize("width", [320, 390, 768])
def test_a_phone_scrolls_tables_and_never_the_page(seen, width):
    seen.resize(width)
    seen.run("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert seen.run("document.documentElement.scrollWidth") <= width


def test_paper_has_every_table_and_the_page_is_light(seen, page):
    folded = "document.querySelectorAll('details.more:not([open])').length"
    before = seen.run(folded)
    seen.run("dispatchEvent(new Event('beforeprint'))")
    assert (before > 0, seen.run(folded)) == (True, 0)
    seen.run("dispatchEvent(new Event('afterprint'))")
    pdf = seen.print()
    assert pdf.startswith(b"%PDF")
    assert len(pdf) > 50_000
    assert seen.run(folded) == before
    assert page.stat().st_size < 5_000_000


def test_files_come_out_of_the_page_itself(seen):
    names = seen.run("[...document.querySelectorAll('.files a')].map((a) => a.download)")
    assert {name.rpartition(".")[2] for name in names} == {"csv", "tex", "md"}
    text = seen.run("fetch(document.querySelector('.files a[download$=tex]').href).then((r) => r.text())")
    assert r"\toprule" in text
