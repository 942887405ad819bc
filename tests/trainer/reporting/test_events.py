import re
from pathlib import Path

from PIL import Image

from tests.trainer.orchestration import run_events
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
        "overlap (top 10, lowest over the capabilities): text-image 0.940",
        "overlap with the base (top 10, lowest over the capabilities): text 0.930, image 0.940",
    ]
    assert list(overlap_lines([])) == []
    (_, first), _ = overlaps_of(events)
    assert first.at("text@2", "image@2", "image") == (0.49, 0.02)


def test_a_run_is_drawn_even_when_little_has_happened(tmp_path: Path) -> None:
    for number, events in enumerate((run_events.EVENTS, run_events.EVENTS[:2], [])):
        picture = Image.open(curves(events, tmp_path / f"{number}.png"))
        assert picture.size[0] > 1000
        assert picture.convert("L").getextrema() == (0, 255)


def test_every_pair_of_five_branches_has_a_colour_of_its_own(tmp_path: Path) -> None:
    branches = [f"{name}@3" for name in ("text", "image", "video", "shapes", "order")]
    drawing = curves([run_events.overlap(3, *branches)], tmp_path / "five.svg").read_text()
    colours = set(re.findall(r"stroke: (#\w{6})", drawing)) - {"#000000", "#cccccc"}  # axes, frames of legends
    assert len(colours) == 5 * 4 / 2 + 5  # with each other, and with the base
