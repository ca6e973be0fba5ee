"""Pieces of the page, read back as a browser would read them: cells, links, what unfolds and what is bold."""

import base64
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import yaml

from analysis.frame import Row
from analysis.page import parts
from harness.records.record import RunStatus
from tests.analysis.rows_for_figures import Run, rows
from tests.analysis.test_default import sweep_of


def parsed(html: str) -> ET.Element:
    """Return the tree; what is no XML would be no page that anybody can rely on."""
    html = html.replace("class=number", 'class="number"').replace(" hidden readonly", "")
    return ET.fromstring(f"<page>{html}</page>")


def cells(line: ET.Element) -> list[str]:
    return ["".join(cell.itertext()) for cell in line]


def lines_of(html: str) -> list[ET.Element]:
    return parsed(html).findall(".//tbody/tr")


# Answers ------------------------------------------------------------------------------------------


def test_answers_stand_beside_their_reference_and_those_that_equal_it_are_bold() -> None:
    first = [
        ["1 < 2 ?", "yes", " yes ", "no"],
        ["a & b ?", "b", "c", "b"],
        ["empty ?", " ", " ", ""],
    ]
    second = [["a & b ?", "b", "c", "a"], ["1 < 2 ?", "yes", " yes ", "yes"]]
    html = parts.answers_table(["r=2", "r=8"], [first, second])
    head = parsed(html).findall(".//thead/tr/th")
    assert [each.text for each in head][-2:] == ["r=2", "r=8"]
    assert len(head) == 5
    found = lines_of(html)
    assert [cells(line) for line in found] == [
        ["1 < 2 ?", "yes", " yes ", "no", "yes"],
        ["a & b ?", "b", "c", "b", "a"],
        ["empty ?", " ", " ", "", "—"],  # the second cell was not asked that
    ]
    bold = [[cell.find("b") is not None for cell in line] for line in found]
    assert bold == [
        [False, False, True, False, True],
        [False, False, False, True, False],
        [False] * 5,
    ]


# Runs ---------------------------------------------------------------------------------------------


def test_every_run_is_a_line_with_its_numbers_and_a_link() -> None:
    good = Run(rank=2, seed=3, loss=1.25, role="search")
    bad = Run(rank=8, seed=4, status=RunStatus.out_of_memory, error="<no> room")
    found: list[Row] = rows(good, bad, Run(rank=16, loss=2.0))
    found[0]["wall_seconds"], found[1]["wall_seconds"] = 12.345, None
    html = parts.runs_table(found, ["eval/loss", "train/loss"], "../a b/runs")
    assert cells(parsed(html).findall(".//thead/tr")[0])[:4] == ["run", "role", "seed", "status"]
    first, second, _ = lines_of(html)
    assert cells(first) == [good.run_id, "search", "3", "completed", "1.2500", "—", "12.3", ""]
    assert cells(second) == [bad.run_id, "—", "4", "out of memory", "—", "—", "—", "<no> room"]
    link = first.find(".//a")
    assert link is not None
    assert link.get("href") == f"../a%20b/runs/{good.run_id}/"
    kinds = [cell.get("class") for cell in first]
    assert kinds == [None, None, "number", None, "number", "number", "number", "text"]
    summary = parsed(html).find(".//summary")
    assert summary is not None
    assert summary.text == "3 runs: 2 completed, 1 out of memory"


# Provenance ---------------------------------------------------------------------------------------


def facts(html: str) -> dict[str, list[str]]:
    """Return each fact's values."""
    names = re.findall(r"<dt>(.*?)</dt>", html)
    values = re.findall(r"<dd>(.*?)</dd>", html)
    return {n: unescape(v).split("<br>") for n, v in zip(names, values, strict=True)}


def made_with(**given: Any) -> Row:
    row = rows(Run())[0]
    for key in [key for key in row if key.startswith("provenance.")]:
        row[key] = None
    return row | {f"provenance.{key}": value for key, value in given.items()}


def test_a_fact_is_listed_with_how_many_runs_have_it_where_they_differ() -> None:
    found = facts(
        parts.provenance_list(
            [
                made_with(commit="abc", dirty=True, host="here", gpus="", command="harness run"),
                made_with(commit="abc", dirty=True, host="here", gpus="", command="harness run"),
                made_with(
                    commit="abc",
                    dirty=False,
                    host="here",
                    gpus="2 of <them>",
                    command="harness run",
                ),
            ]
        )
    )
    assert found["commit"] == ["abc with local changes (2 runs)", "abc (1 runs)"]
    assert found["machine"] == ["here"]
    assert found["command"] == ["harness run"], "only a commit has local changes"
    assert found["GPUs"] == ["none (2 runs)", "2 of <them> (1 runs)"]
    assert "CPU" not in found, "nobody knows it"
    assert found["started"] == ["2026-11-21T00:00:00+00:00 to 2026-11-21T00:00:00+00:00"]


@pytest.mark.parametrize(("count", "more"), [(8, None), (9, "and 1 more"), (12, "and 4 more")])
def test_of_many_values_eight_are_listed_and_the_rest_is_counted(count, more) -> None:
    listed = facts(parts.provenance_list([made_with(host=f"h{n}") for n in range(count)]))
    machines = listed["machine"]
    assert [text.endswith("(1 runs)") for text in machines[:8]] == [True] * 8
    assert machines[8:] == ([] if more is None else [more])


def test_runs_from_first_to_last_and_none() -> None:
    made = [made_with(host="h") | {"started_at": at} for at in ("2026-03", "2026-01", "2026-02")]
    assert facts(parts.provenance_list(made))["started"] == ["2026-01 to 2026-03"]
    assert parts.provenance_list([]) == ""


# Notes, tables, figures ---------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 8, 9, 11])
def test_a_note_shows_eight_sentences_and_unfolds_the_rest(count: int) -> None:
    html = parts.bullet_list([f"s{n}" for n in range(count)], "Missing & more")
    if count == 0:
        assert html == ""
        return
    tree = parsed(html)
    shown = [item.text for item in tree.findall("./div/ul/li")]
    folded = [item.text for item in tree.findall(".//details/ul/li")]
    assert shown == [f"s{n}" for n in range(min(count, 8))]
    assert folded == [f"s{n}" for n in range(8, count)]
    summary = tree.find(".//summary")
    assert (summary is None) is (count <= 8)
    assert summary is None or summary.text == f"and {count - 8} more"


def test_a_table_is_copied_by_its_buttons_and_links_to_its_files() -> None:
    html = parts.table_block(
        name="cost", html="<p>t</p>", markdown="| a & b |", latex="a \\& b", directory="tables"
    )
    tree = parsed(html)
    texts = {area.get("id"): area.text for area in tree.findall(".//textarea")}
    assert texts == {"tex-cost": "a \\& b", "md-cost": "| a & b |"}
    buttons = {button.get("data-copy"): button.text for button in tree.findall(".//button")}
    assert buttons == {"tex-cost": "Copy LaTeX", "md-cost": "Copy Markdown"}
    links = [link.get("href") for link in tree.findall(".//a")]
    assert links == [f"tables/cost.{suffix}" for suffix in ("tex", "md", "csv", "json")]


@pytest.mark.parametrize("narrow", [None, "<svg>n</svg>"])
def test_a_picture_carries_its_drawing_and_a_narrow_one_for_a_phone(narrow: str | None) -> None:
    html = parts.picture(
        title="loss <over> rank", caption="Of 3.", stem="figures/a", svg="<svg/>", narrow_svg=narrow
    )
    html = re.sub(r"(<(?:img|source)[^>]*)>", r"\1/>", html)
    figure = parsed(html).find("figure")
    assert figure is not None
    heading, image = figure.find("h3"), figure.find(".//img")
    assert heading is not None
    assert image is not None
    assert heading.text == "Loss <over> rank"
    assert image.get("alt") == "loss <over> rank. Of 3."

    def drawing(address: str | None) -> str:
        assert address is not None
        return base64.b64decode(address.removeprefix("data:image/svg+xml;base64,")).decode()

    assert drawing(image.get("src")) == "<svg/>"
    source = figure.find(".//source")
    assert (source is None) is (narrow is None)
    assert source is None or drawing(source.get("srcset")) == narrow
    assert figure.get("class") == (None if narrow is None else "wide")
    assert [a.get("href") for a in figure.findall(".//a")] == ["figures/a.pdf", "figures/a.png"]


def test_figures_lie_in_a_grid_and_none_in_nothing() -> None:
    assert parts.figure_grid([]) == ""
    assert parts.figure_grid(["<b/>", "<i/>"]) == '<div class="figures"><b/><i/></div>'


# How it stands, and again ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statuses", "told"),
    [
        (["completed", "failed", "completed"], "2 completed, 1 failed"),
        (["running"], "1 running"),
        ([], "none asked"),
    ],
)
def test_a_sweep_s_status_is_a_line(statuses: list[str], told: str) -> None:
    state = {
        "status": "finished",
        "method": "tpe",
        "trials": [{"status": status} for status in statuses],
        "trials_requested": 7,
        "objectives": {"eval/loss": "minimize", "memory/peak_bytes": "minimize"},
        "updated_at": "2026-11-21",
    }
    assert parts.status_line(state, rows(Run(), Run(seed=1))) == (
        f"finished · tpe · 7 trials requested ({told}) · 2 runs with a record · eval/loss (minimize) and "
        "memory/peak_bytes (minimize) · updated 2026-11-21"
    )


@pytest.mark.parametrize("kept", [True, False])
def test_a_sweep_is_asked_again_with_its_question(tmp_path: Path, kept: bool) -> None:
    asked = {"name": "small", "question": "a < b?", "base": ["optim.lr=1"]}
    sweep = replace(
        sweep_of([], asked=asked, directory=tmp_path),
        base=("optim.lr=1", "paths.out=/x y", "tracker=none"),
    )
    text = "name: small  # as it was written, with a < b\n"
    if kept:
        (tmp_path / "sweep.yaml").write_text(text)
    html = parts.reproduction(sweep)
    commands, question = parsed(html).findall(".//pre")
    assert commands.text == "harness sweep small.yaml\nharness report small paths.out=/x y"
    copied = parsed(html).find(".//textarea")
    assert copied is not None
    assert copied.text == question.text
    assert copied.get("id") == "sweep-yaml"
    if kept:
        assert question.text == text
    else:
        assert question.text is not None
        assert yaml.safe_load(question.text) == asked
        assert list(yaml.safe_load(question.text)) == list(asked), "in its order"
