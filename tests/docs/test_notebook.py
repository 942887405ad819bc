"""The notebook that a researcher opens first runs from top to bottom, and prints what is kept in it."""

from itertools import chain
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.docs.blocks import ROOT

NOTEBOOK = ROOT / "docs/quickstart.ipynb"


def printed(notebook: nbformat.NotebookNode) -> list[list[str]]:
    """The lines of each cell; none of cells that are tagged as those whose figures depend on the machine."""
    cells: list[list[str]] = []
    for cell in notebook.cells:
        outputs = cell.get("outputs", [])
        texts: list[str] = [output.get("text") or output.data.get("text/plain", "") for output in outputs]
        varies = "varies" in cell.metadata.get("tags", [])
        cells.append([] if varies else "".join(texts).splitlines())
    return cells


@pytest.mark.engine
def test_the_quick_start_prints_what_it_shows(tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    expected = printed(notebook)
    assert any(expected)
    NotebookClient(notebook, timeout=280, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert printed(notebook) == expected


def test_the_quick_start_is_small_and_linked() -> None:
    assert NOTEBOOK.stat().st_size < 40_000
    outputs = chain.from_iterable(cell.get("outputs", []) for cell in nbformat.read(NOTEBOOK, as_version=4).cells)
    assert all(output.output_type != "error" for output in outputs)
    assert "(docs/quickstart.ipynb)" in (ROOT / "README.md").read_text()
    assert "(quickstart.ipynb)" in (ROOT / "docs/README.md").read_text()
