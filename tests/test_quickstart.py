"""The notebook runs as it stands, from the first cell to the last, in a Jupyter kernel."""

from pathlib import Path

import nbclient
import nbformat
import pytest

NOTEBOOK = Path(__file__).parents[1] / "examples" / "quickstart.ipynb"


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To a plot, with a screenful of progress and no warning."""
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parents[1]), prepend=":")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}
    said = [output.text for given in outputs.values() for output in given if output.output_type == "stream"]
    assert not [output for given in outputs.values() for output in given if output.get("name") == "stderr"]
    assert len("".join(said).splitlines()) < 120
    for cell in ("draw", "by-round"):
        assert any("image/png" in output.get("data", {}) for output in outputs[cell]), cell
    (folder,) = (tmp_path / "multirun").glob("*/*")
    assert len(list(folder.glob("*/result.json"))) == 3
