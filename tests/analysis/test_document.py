"""The html documents, read back: what is listed, what may run, and what is no markup."""

import base64
import hashlib
import re
from html import unescape

import pytest

from analysis.page.document import Section, document
from analysis.page.live import live_document

SECTIONS = (
    Section(key="one", title="First & <last>", body="<p>body of one</p>"),
    Section(key="none", title="Nothing", body=""),
    Section(key="two", title="Second", body="<p>body of two</p>"),
)


def digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def test_a_page_has_a_section_and_a_link_to_it_for_each_that_has_a_body() -> None:
    page = document(title="a < b", head="<h1>Head</h1>", sections=SECTIONS)
    assert "<title>a &lt; b</title>" in page
    links = re.findall(r'<a href="#(\w+)">(.*?)</a>', page)
    assert [(key, unescape(title)) for key, title in links] == [
        ("one", "First & <last>"),
        ("two", "Second"),
    ]
    found = re.findall(r'<section id="(\w+)">\n<h2>(.*?)</h2>\n(.*?)\n</section>', page)
    assert found == [
        ("one", "First &amp; &lt;last&gt;", "<p>body of one</p>"),
        ("two", "Second", "<p>body of two</p>"),
    ]
    assert page.index("<h1>Head</h1>") < page.index("<nav>") < page.index('<section id="one">')


def test_only_the_page_s_own_script_may_run() -> None:
    page = document(title="t", head="", sections=SECTIONS)
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert script
    assert f"script-src 'sha256-{digest(script)}'" in page
    assert "<style>\n" in page


@pytest.mark.parametrize("seconds", [None, 5])
def test_a_page_is_loaded_again_only_where_that_is_asked(seconds: int | None) -> None:
    page = document(title="t", head="", sections=SECTIONS, refresh_seconds=seconds)
    found = re.findall(r'http-equiv="refresh" content="(\d+)"', page)
    assert found == ([] if seconds is None else ["5"])


def test_the_live_page_runs_its_own_style_and_script_and_names_the_sweep_as_text() -> None:
    page, policy = live_document("a<b>")
    (style,) = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert f"style-src 'sha256-{digest(style)}'" in policy
    assert f"script-src 'sha256-{digest(script)}'" in policy
    assert "<title>a&lt;b&gt;, live</title>" in page
    assert 'id="question">a&lt;b&gt;</h1>' in page
    assert "NAME" not in page.replace(script, "")
    assert "a<b>" not in page
