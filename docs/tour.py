"""Executes docs/tour.ipynb and keeps its outputs, with the hash of the source that they belong to: python docs/tour.py."""

import hashlib
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

PAGE = Path(__file__).with_name("tour.ipynb")
PARAMETERS = "parameters"  # the tag of the cell that a test puts its own values after


def source_sha256(notebook: NotebookNode) -> str:
    """Hex sha256 of the sources of all code cells, in order: what the outputs are of."""
    digest = hashlib.sha256()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            digest.update(f"{cell.source}\n\0".encode())
    return digest.hexdigest()


def executed(notebook: NotebookNode, folder: Path, parameters: str = "", timeout: int = 600) -> NotebookNode:
    """The notebook with the outputs of an execution in `folder`; `parameters` is code that follows the cell of parameters.

    A cell that takes more than `timeout` seconds, or fails, raises nbclient's error.
    """
    notebook = nbformat.from_dict(notebook)
    (settings,) = (cell for cell in notebook.cells if PARAMETERS in cell.metadata.get("tags", ()))
    settings.source += f"\n{parameters}" if parameters else ""
    client = NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute()
    return notebook


def main() -> None:
    """Execute the notebook and write it in place, without what its cells said on stderr."""
    notebook = nbformat.read(PAGE, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        done = executed(notebook, Path(folder), timeout=3600)
    for cell in done.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    done.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "mergevq": {"source_sha256": source_sha256(notebook)},
    }
    nbformat.write(done, PAGE)


if __name__ == "__main__":
    main()
