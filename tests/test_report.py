"""The page, the figures, the notebook and the command line on tables of known content."""

import json
import re
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner
from matplotlib.axes import Axes
from nbclient import NotebookClient

from scaling import figures, plug, results
from scaling.cli import main
from scaling.study import study

from conftest import loss_world

ROOT = Path(__file__).parents[1]


def tiny_table(path: Path, noise: float = 0.01, **changes) -> Path:
    """A results table with every column that a report looks at."""
    frame = loss_world(noise).assign(kind="mambadm", run_id=lambda f: f.index.astype(str), **changes)
    frame["score"] = 100 - 200 * frame["loss_best"]
    frame["curve"] = [[{"update": u, "loss": x + 1 / u} for u in (1, 2)] for x in frame["loss_best"]]
    frame["draw"] = frame["seed"]
    rows = frame.to_dict("records")
    rows.append({"run_id": "bad", "status": "failed", "error": "diverged: <it> did", "kind": "mambadm"})
    results.write_table(pa.Table.from_pylist(rows, schema=results.SCHEMA), path)
    return path


@pytest.fixture
def table(tmp_path) -> Path:
    return tiny_table(tmp_path / "t.parquet")


def call(*arguments: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(main, list(map(str, arguments)))
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


def test_the_page_stands_alone_and_says_what_the_command_line_says(table, tmp_path):
    code, said, _ = call("report", table, "--draws", 60, "--figures", tmp_path / "figures")
    assert code == 0
    page = (tmp_path / "t.html").read_text()
    verdict = said.splitlines()[0]
    assert verdict.startswith("Verdict: ")
    assert verdict in page
    assert len(re.findall(r'<img src="data:image/png;base64,', page)) == 8
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert "diverged: &lt;it&gt; did" in page
    assert "50 runs" in page
    assert len(list((tmp_path / "figures").glob("*.png"))) == 8
    assert plt.get_fignums() == []


def test_the_answer_comes_as_words_and_as_json(table):
    _, said, _ = call("answer", table, "--draws", 60)
    assert "P(data beats model) = " in said
    code, plain, words = call("answer", table, "--draws", 60, "--json", "-")
    told = json.loads(plain)
    assert code == 0
    assert words == said
    assert 0 <= told["probability"] <= 1
    assert told["data"]["low"] <= told["data"]["estimate"] <= told["data"]["high"]


def test_fit_prints_what_it_writes(table, tmp_path):
    code, said, _ = call("fit", table, "--draws", 60, "--json", tmp_path / "deep" / "fit.json")
    told = json.loads((tmp_path / "deep" / "fit.json").read_text())
    assert code == 0
    assert "certified" in said
    assert told["certified"]
    assert told["rows_refused"] == {"failed run": 1}
    for name, (low, high) in told["intervals"]["percentile"].items():
        assert low <= told["theta"][name] <= high
    assert f"{told['theta']['beta']:.4g}" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fit", "T", "--law", "aditive"], "did you mean 'additive'"),
        (["fit", "T", "--loss", "los"], "no column 'los'"),
        (["answer", "T", "--law", "power_n"], "an answer needs a law in both N and D; power_n takes N"),
        (["fit", "none.parquet"], "none.parquet: no such file"),
        (["report", "none.parquet"], "none.parquet: no such file"),
        (["fit", "T", "--delta", "0"], "Invalid value for '--delta'"),
        (["fit", "T", "--draws", "x"], "Invalid value for '--draws'"),
        (["plan"], "Missing argument 'SWEEP'"),
        (["fti"], "No such command 'fti'"),
    ],
)
def test_a_mistake_on_the_command_line_is_named_with_exit_code_2(table, arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    code, _, error = call(*[str(table) if a == "T" else a for a in arguments])
    assert code == 2
    assert said in error
    assert sorted(tmp_path.iterdir()) == before


def test_losses_that_have_no_logarithm_are_refused(tmp_path):
    path = tiny_table(tmp_path / "zero.parquet", loss_best=0.0)
    code, _, error = call("fit", path)
    assert code == 2
    assert "column 'loss_best' must be positive" in error


@pytest.mark.parametrize("verb", ["plan", "run", "status", "collect", "fit", "answer", "report"])
def test_every_verb_explains_itself(verb):
    code, said, _ = call(verb, "--help")
    assert code == 0
    assert "SWEEP" in said or "TABLE" in said
    assert verb in call("--help")[1]


def test_figures_draw_every_run_and_label_axes_from_the_schema():
    looked_at = study(loss_world(0.01), draws=30)
    drawn: list[Axes] = [
        figures.loss_against(looked_at.fit, "D", "loss_best"),
        figures.law_with_band(looked_at.bootstrap, "N", "loss_best"),
    ]
    points = [line for line in drawn[0].lines if line.get_linestyle() == "None"]
    assert sum(len(line.get_xdata()) for line in points) == 50
    assert drawn[0].get_xlabel() == "D [transitions]"
    assert drawn[1].get_xlabel() == "N [parameters]"
    assert max(np.max(line.get_xdata()) for line in drawn[1].lines[:1]) == pytest.approx(2 * 1.4e5)


NOTEBOOKS = sorted((ROOT / "analysis").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_run_on_any_table(path, table, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    parameter = next(cell for cell in cells if "parameters" in cell.metadata.get("tags", []))
    parameter.source = f"TABLE = {str(table)!r}"
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 3


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_are_thin_and_hold_their_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(len(cell.source.splitlines()) <= 12 for cell in code)
    assert not any(re.search(r"^\s*(def|class) ", cell.source, re.M) for cell in code)
    assert any("image/png" in output.get("data", {}) for cell in code for output in cell.outputs)


def test_fits_need_neither_torch_nor_ray():
    """The base package serves people who only have a table."""
    heavy = {"torch", "ray", "numba", "accelerate", "gymnasium", "h5py"}
    code = f"import sys, scaling.cli; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_there_are_notebooks_and_laws():
    assert NOTEBOOKS
    assert plug.names("laws") == ["additive", "constant", "power_d", "power_n"]
