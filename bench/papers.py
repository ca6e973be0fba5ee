"""`python -m bench.papers [--scale SCALE] [--no-run] [NAME…]`: the papers of sweeps/papers, asked and
written down.

Each is run and reported as by `harness sweep papers/NAME scale=SCALE` and `harness report`; one that has
ended is not trained again. Writes a page for each into docs/papers, with its tables, figures, runs, seeds and
hardware, and the index of all that have one. `--no-run` writes what is there.
"""

import argparse
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import yaml

from analysis.edges import edges_of
from analysis.published import load_published, published_names
from analysis.question_cost import busy_seconds
from analysis.report import report_sweep
from analysis.sources import SweepData, load_sweep
from harness.config.compose import compose_run
from harness.errors import RequestError, near_names
from harness.question.load import known_sweeps, sweeps_directory
from harness.records.record import RunStatus

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = ROOT / "docs" / "papers"
FOLDER = "papers/"
SCALES = ("embedded", "smollm2_cpu", "smollm2_mmlu", "smollm2", "paper")
OF_A_MACHINE = ("paths.", "tracker", "resources.")
"""Keys in front of what a run's name and numbers do not depend on."""
TABLES = ("ordering", "published", "contrasts", "rate_law", "rate_transfer")
FIGURES = ("contrasts", "best_rate_over_rank")
WITHOUT_NUMBERS = "no numbers"
TOOK = re.compile(r"([\d,]+) optimizer steps in ([\d.]+) minutes")
FEWEST_STEPS = 1000
"""Of a page whose rate counts: fewer are mostly start-up."""
NEEDS_A_GPU = "what it asks cannot be measured without one"
INTRODUCTION = (
    "Each is one file in `sweeps/papers/`: a question with what the paper claims, at the scales `embedded` "
    "(two CPU cores, a few minutes), `smollm2` (a real small model of 135 million parameters) and `paper` "
    "(the paper's own model or the nearest to be had; on a GPU). `harness plan papers/NAME scale=paper` "
    "says without a network what it needs and fetches, `harness sweep papers/NAME scale=…` asks it, and "
    "`harness report` prints published, ours and a verdict. `make papers` makes these pages.",
    "A verdict is the test's: the published ordering *appears*, *is reversed*, *does not appear* or *is not "
    "decided*. A base of 1.3 million parameters can show an ordering; it cannot refute a paper on 7 billion.",
)


def main(words: Sequence[str]) -> int:
    """Ask the papers and write docs/papers; returns 1 where one has failed."""
    parser = argparse.ArgumentParser(prog="python -m bench.papers", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="papers; none: all of the scale")
    parser.add_argument("--scale", choices=SCALES, default=SCALES[0])
    parser.add_argument("--no-run", action="store_true")
    given = parser.parse_args(words)
    known = {name.removeprefix(FOLDER): name for name in known_sweeps() if name.startswith(FOLDER)}
    for name in given.names:
        if name not in known:
            raise RequestError(
                f"no paper is called {name}{near_names(name, known)}; there are {', '.join(known)}"
            )
    names = [name for name in given.names or known if given.scale in scales_of(name)]
    failed = [] if given.no_run else [n for n in names if not asked(n, given.scale)]
    out = Path(compose_run([]).paths.out)
    for name in given.names or known:
        for scale in scales_of(name):
            if (out / "sweeps" / f"{name}_{scale}" / "state.json").exists():
                write_page(out, name, scale)
    write_index()
    for name in failed:
        print(f"{name} has failed; the same command goes on", file=sys.stderr)
    return int(bool(failed))


def scales_of(name: str) -> list[str]:
    """Return the scales that a paper has."""
    return list(_tree_of(name)["scales"])


def _tree_of(name: str) -> dict:
    return yaml.safe_load((sweeps_directory() / FOLDER / f"{name}.yaml").read_text("utf-8"))


def asked(name: str, scale: str) -> bool:
    """Run one paper's sweep in a process of its own; whether it has come to its end."""
    command = [sys.executable, "-m", "harness", "sweep", f"{FOLDER}{name}", f"scale={scale}"]
    began = time.monotonic()
    done = subprocess.run([*command, "tracker=none"], cwd=ROOT, check=False)
    print(f"{name} {scale}: {(time.monotonic() - began) / 60:.1f} min", flush=True)
    return done.returncode == 0


# Pages --------------------------------------------------------------------------------------------


def write_page(out: Path, name: str, scale: str) -> None:
    """Write docs/papers/NAME_SCALE.md and its figures, from the sweep's report."""
    sweep = load_sweep(out, f"{name}_{scale}")
    written = report_sweep(out, sweep.name)
    report = written.index.parent
    pictures = [figure for figure in FIGURES if figure in written.figures]
    (DOCUMENTS / "images").mkdir(parents=True, exist_ok=True)
    for figure in pictures:
        source = report / "figures" / f"{figure}_wide.png"
        shutil.copyfile(source, DOCUMENTS / "images" / f"{sweep.name}_{figure}.png")
    found = written.answer or "Nothing is confirmed: the search's own trials are the result."
    parts = [
        f"# {sweep.question}",
        f"`harness sweep {FOLDER}{name} scale={scale}`, made by `python -m bench.papers`.",
        f"**Expected:** {sweep.expect}",
        f"**Found:** {found}",
        *([f"**Published:** {written.ordering}"] if written.ordering else []),
        *(f"**Law:** {law}" for law in written.laws),
        *(f"**Edge of the grid:** {edge.sentence}" for edge in edges_of(sweep)),
        *(f"![{figure}](images/{sweep.name}_{figure}.png)" for figure in pictures),
        *(
            (report / "tables" / f"{table}.md").read_text("utf-8").strip()
            for table in TABLES
            if table in written.tables
        ),
        *_how(sweep),
    ]
    (DOCUMENTS / f"{sweep.name}.md").write_text("\n\n".join(parts) + "\n", "utf-8")


def _how(sweep: SweepData) -> list[str]:
    """Return what was run: seeds, runs, time, hardware, versions, and the runs' names."""
    rows, asked_for = sweep.rows, sweep.asked
    confirm = asked_for.get("confirm") or {}
    ended = {status: sum(row["status"] is status for row in rows) for status in RunStatus}
    outcome = ", ".join(f"{n} {status.value.replace('_', ' ')}" for status, n in ended.items() if n)

    def of(key: str) -> str:
        return (
            "; ".join(dict.fromkeys(str(row[key]) for row in rows if row.get(key))) or "not known"
        )

    base = [word for word in asked_for.get("base") or [] if not word.startswith(OF_A_MACHINE)]
    lines = [
        f"- **Runs**: {len(rows)} ({outcome}); {_steps(sweep):,} optimizer steps in {_minutes(sweep):.1f} "
        "minutes with a run in progress.",
        f"- **Seeds**: search {_listed(asked_for['search'].get('seeds'))}, confirmation "
        f"{_listed(confirm.get('seeds'))}.",
        f"- **Hardware**: {of('provenance.cpu')}; GPUs: {of('provenance.gpus')}.",
        f"- **Versions**: {of('provenance.packages')}; commit {of('provenance.commit')}.",
        f"- **Every run**: `{'` `'.join(base)}`",
    ]
    names = "\n".join(f"- `{row['run_id']}` ({row['role']})" for row in rows)
    folded = f"<details><summary>The runs</summary>\n\n{names}\n\n</details>"
    return ["## How it was run", "\n".join(lines), folded]


def _listed(seeds: Sequence[int] | None) -> str:
    return "none" if not seeds else ", ".join(map(str, seeds))


def _steps(sweep: SweepData) -> int:
    """Return the optimizer steps of the runs that came to their end."""
    ended = (row for row in sweep.rows if row["status"] is RunStatus.completed)
    return sum(row.get("optim.steps") or 0 for row in ended)


def _minutes(sweep: SweepData) -> float:
    """Return the minutes in which a run was in progress, whenever it was asked."""
    timed = (row for row in sweep.rows if row.get("started_at") and row["wall_seconds"] is not None)
    return busy_seconds(timed) / 60


# The index ----------------------------------------------------------------------------------------


def write_index() -> None:
    """Write docs/papers/README.md: every paper with what its pages found, and what is not there."""
    lines = [
        "| paper | question | scale | the published ordering | steps | minutes |",
        "| --- | --- | --- | --- | ---: | ---: |",
    ]
    took: list[tuple[int, float]] = []
    for path in sorted((sweeps_directory() / FOLDER).glob("*.yaml")):
        tree = _tree_of(path.stem)
        for scale in tree["scales"]:
            page = DOCUMENTS / f"{path.stem}_{scale}.md"
            if not page.exists():
                continue
            steps, minutes = _read_took(page)
            if scale == SCALES[0]:
                took.append((steps, minutes))
            named = f"[{path.stem}]({page.name})"
            lines.append(
                f"| {named} | {tree['question']} | {scale} | {_said(page)} | {steps:,} | {minutes:.1f} |"
            )
    parts = [
        "# The papers as presets",
        *INTRODUCTION,
        "\n".join(lines),
        _together(took),
        f"Without a page: {'; '.join(_without_page()) or 'none'}.",
        "## What can never stand beside a run of ours",
        "\n".join(_never()) or "Nothing.",
        "## Published numbers",
        "\n".join(_sources()),
    ]
    (DOCUMENTS / "README.md").write_text("\n\n".join(parts) + "\n", "utf-8")


def _without_page() -> list[str]:
    """Return the papers of which nothing has been run, and why where that is known."""
    names = sorted(path.stem for path in (sweeps_directory() / FOLDER).glob("*.yaml"))
    return [
        f"`{name}`, not run yet"
        if SCALES[0] in scales_of(name)
        else f"`{name}`, whose scales {' and '.join(scales_of(name))} are a GPU's: {NEEDS_A_GPU}"
        for name in names
        if not any((DOCUMENTS / f"{name}_{scale}.md").exists() for scale in scales_of(name))
    ]


def _read_took(page: Path) -> tuple[int, float]:
    """Return the optimizer steps and the minutes that a page says its runs took; 0 where it says none."""
    found = TOOK.search(page.read_text("utf-8"))
    return (0, 0.0) if found is None else (int(found[1].replace(",", "")), float(found[2]))


def _together(took: Sequence[tuple[int, float]]) -> str:
    """Say what all pages of the first scale took, and would at the rate of the least disturbed."""
    steps, minutes = sum(each for each, _ in took), sum(each for _, each in took)
    said = (
        f"All at scale {SCALES[0]} together: {steps:,} optimizer steps in {minutes:.0f} minutes with a run "
        "in progress, on two cores that had other work at the same time; a run that two pages share counts in"
        " both."
    )
    rates = [each / spent for each, spent in took if each >= FEWEST_STEPS and spent > 0]
    if not rates:
        return said
    return (
        f"{said} At the rate of the page that was disturbed least, {max(rates) / 60:.0f} steps a second, "
        f"they would take {steps / max(rates):.0f} minutes."
    )


def _said(page: Path) -> str:
    """Return the sentences of a page about the ordering and the law, or else what was found."""
    lines = page.read_text("utf-8").splitlines()
    for word in ("**Published:** ", "**Law:** ", "**Found:** "):
        said = [line.removeprefix(word) for line in lines if line.startswith(word)]
        if said:
            return " ".join(said).replace("|", "\\|")
    return "—"


def _never() -> list[str]:
    tables = [load_published(name) for name in published_names()]
    return [
        f"- {t.label} ({t.paper}, {t.table}): {t.never}." for t in tables if t.never is not None
    ]


def _sources() -> list[str]:
    lines = []
    for table in map(load_published, published_names()):
        where = f"arXiv {table.arxiv}" if table.arxiv else table.source
        count = len(table.values) or WITHOUT_NUMBERS
        lines.append(f"- `{table.name}`: {table.paper}, {where}, {table.table}; {count}.")
    return lines


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except RequestError as error:
        sys.exit(f"bench.papers: {error}")
