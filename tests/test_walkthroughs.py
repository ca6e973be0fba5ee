"""docs/walkthroughs.md has every item of the three texts, and its commands are words that the harness has."""

import re
import shlex
from pathlib import Path

from harness.cli.options import COMMANDS, FLAGS_OF
from harness.config.compose import group_options, known_keys

PAGE = Path(__file__).resolve().parents[1] / "docs" / "walkthroughs.md"
ITEMS = {
    "Mistral-7B answers comments": 18,
    "Llama-3 8B follows instructions": 13,
    "LoRA and QLoRA explained": 7,
}


def rows(section: str) -> list[str]:
    text = PAGE.read_text(encoding="utf-8").partition(f"## {section}\n")[2].partition("\n## ")[0]
    return [line for line in text.splitlines() if line.startswith("| ") and "---" not in line][1:]


def test_all_thirty_eight_items_stand_there() -> None:
    assert {section: len(rows(section)) for section in ITEMS} == ITEMS
    assert sum(ITEMS.values()) == 38


def test_the_commands_have_options_keys_and_choices_that_exist() -> None:
    options = group_options()
    known = {*known_keys(), *options, "plan.shape", "plan.ranks", "plan.device"}
    seen = 0
    for section in ITEMS:
        for line in rows(section):
            for command in re.findall(r"`harness ([^`]+)`", line):
                name, *words = shlex.split(command)
                assert name in COMMANDS, command
                seen += 1
                for word in words:
                    key, equals, value = word.partition("=")
                    if word.startswith("-"):
                        assert key in FLAGS_OF[name], command
                    elif equals:
                        assert key in known, command
                        own = key in options and key != "model"
                        assert not own or value in options[key], command
    assert seen >= 30
