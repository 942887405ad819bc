import re
from pathlib import Path

from PIL import Image
from rich.console import Console as Terminal

from service.palette import colours
from tests.faults.recipes import small
from tests.trainer.orchestration import run_events
from trainer.reporting.console import Console
from trainer.reporting.curves import curves
from trainer.reporting.events import overlap_lines, overlaps_of, read_events


def test_a_line_that_is_still_being_written_is_no_event(tmp_path: Path) -> None:
    path = run_events.write(tmp_path / "events.jsonl")
    with path.open("a") as file:
        file.write('{"kind": "st')
    assert read_events(path) == run_events.EVENTS
    assert read_events(tmp_path / "none.jsonl") == []


def test_the_last_comparison_is_told_pair_by_pair() -> None:
    events = [run_events.overlap(2, "text@2", "image@2", value=0.5), run_events.overlap(3, "text@3", "image@3")]
    assert list(overlap_lines(events)) == [
        "shared probability / overlap of the top 10, lowest over the capabilities: text-image 0.980 / 0.940",
        "shared probability / overlap of the top 10 with the base, lowest over the capabilities: "
        "text 0.970 / 0.930, image 0.980 / 0.940",
    ]
    before = {name: value for name, value in events[1].items() if name != "shared"}  # as runs of before told it
    assert next(overlap_lines([before])) == "overlap of the top 10, lowest over the capabilities: text-image 0.940"
    assert list(overlap_lines([])) == []
    (_, first), _ = overlaps_of(events)
    assert first.at("text@2", "image@2", "image") == (0.49, 0.02, 0.98)


def test_a_run_is_drawn_even_when_little_has_happened(tmp_path: Path) -> None:
    for number, events in enumerate((run_events.EVENTS, run_events.EVENTS[:2], [])):
        picture = Image.open(curves(events, tmp_path / f"{number}.png"))
        assert picture.size[0] > 1000
        assert picture.convert("L").getextrema() == (0, 255)


def test_every_pair_of_five_branches_has_colours_of_its_own(tmp_path: Path) -> None:
    branches = [f"{name}@3" for name in ("text", "image", "video", "shapes", "order")]
    drawing = curves([run_events.overlap(3, *branches)], tmp_path / "five.svg").read_text()
    lines = [re.findall(r"(?:stroke|fill): (#\w{6})", line) for line in drawing.split('id="line2d_')]
    # A line has one branch's colour and its points the other's; what stays are axes, and frames of legends.
    pairs = {tuple(dict.fromkeys(colours)) for colours in lines if not {"#000000", "#cccccc"} & {*colours}}
    assert len({pair for pair in pairs if len(pair) == 2}) == 5 * 4 / 2 + 5  # with each other, and with the base


def test_a_branch_has_one_colour_on_the_page_in_pictures_and_in_a_terminal(tmp_path: Path) -> None:
    drawing = curves(run_events.EVENTS, tmp_path / "run.svg").read_text()
    terminal = Terminal(width=160, record=True, force_terminal=True, color_system="truecolor")
    terminal.print(Console(small(), tmp_path / "none.jsonl", "http://here").table())
    styled = terminal.export_text(styles=True)
    for branch, colour in list(colours(("text", "image", "video")).items())[:3]:
        red, green, blue = bytes.fromhex(colour[1:])
        assert f"38;2;{red};{green};{blue}m{branch}" in styled
        assert branch == "video" or colour in drawing  # which has made no step there
