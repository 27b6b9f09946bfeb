"""The tables of docs/devices.md are what the planner says; a bent one would show."""

from __future__ import annotations

from device_tables import PAGE, with_tables


def test_the_tables_are_what_the_planner_says():
    text = PAGE.read_text()
    assert text.count("\n| rpi5-2gb |") == 2
    assert with_tables(text) == text, "run: python tools/device_tables.py"


def test_a_bent_table_would_show():
    text = PAGE.read_text()
    bent = text.replace("| rpi5-2gb | 1,718 of", "| rpi5-2gb | 1,719 of")
    assert bent != text
    assert with_tables(bent) == text
