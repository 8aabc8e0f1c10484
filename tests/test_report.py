"""The page, the figures, the notebook and the command line on tables of known content."""

import json
import re
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from click.testing import CliRunner
from matplotlib.axes import Axes
from nbclient import NotebookClient

from scaling import decision_figures as decisions, figures, results
from scaling.cli import main
from scaling.spec import from_dict, upgraded
from scaling.study import study

from conftest import loss_world, with_specs

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
    code, said, _ = call("report", table, "--bootstrap", 60, "--figures", tmp_path / "figures")
    assert code == 0
    page = (tmp_path / "t.html").read_text()
    verdict = said.splitlines()[0]
    assert verdict.startswith("Verdict: ")
    assert verdict in page
    assert len(re.findall(r'<img src="data:image/png;base64,', page)) == 12
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert "diverged: &lt;it&gt; did" in page
    assert "50 runs" in page
    assert "is out: needs" in page
    assert len(list((tmp_path / "figures").glob("*.png"))) == 12
    assert plt.get_fignums() == []


def test_the_answer_comes_as_words_and_as_json(table):
    _, said, _ = call("answer", table, "--law", "additive", "--bootstrap", 60)
    assert "P(data beats model) = " in said
    code, plain, words = call("answer", table, "--law", "additive", "--bootstrap", 60, "--json", "-")
    told = json.loads(plain)
    assert code == 0
    assert words == said
    assert 0 <= told["probability"] <= 1
    assert told["data"]["low"] <= told["data"]["estimate"] <= told["data"]["high"]


def test_fit_prints_what_it_writes(table, tmp_path):
    code, said, _ = call("fit", table, "--bootstrap", 60, "--json", tmp_path / "deep" / "fit.json")
    told = json.loads((tmp_path / "deep" / "fit.json").read_text())
    assert code == 0
    assert "certified" in said
    assert told["certified"]
    assert told["rows_used"] == 50
    assert told["rows_refused"] == {"failed run": 1}
    assert set(told["theta"]) == {"E", "A", "B", "alpha", "beta"}
    assert told["bootstrap"]["draws"] == 60
    assert set(told["bootstrap"]["standard_errors"]) == set(told["theta"])
    for kind in ("percentile", "bca"):
        for name, (low, high) in told["intervals"][kind].items():
            assert low < high
            assert kind == "bca" or low <= told["theta"][name] <= high
    assert f"{told['theta']['beta']:.4g}" in said
    wanted = ("objective", "delta", "gradient_norm", "hessian_condition", "starts", "agree", "flags", "seconds")
    assert all(name in told for name in wanted)


def test_a_foreign_csv_is_fitted_by_mapping_its_columns(tmp_path):
    frame = loss_world(0.01).rename(columns={"N": "params", "loss_best": "val loss"})
    frame = frame.assign(compute=6 * frame["params"] * frame["D"]).drop(columns=["D", "fraction", "width", "depth"])
    frame.to_csv(tmp_path / "x.csv", index=False)
    mapped = ("--column", "N=params", "--column", "D=compute / (6 * N)", "--column", "loss=val loss")
    code, plain, _ = call("fit", tmp_path / "x.csv", *mapped, "--where", "seed == 0", "--bootstrap", 0, "--json", "-")
    told = json.loads(plain)
    assert code == 0
    assert told["rows_used"] == 25
    assert told["rows_refused"] == {"not where seed == 0": 25}
    assert told["intervals"] is None
    assert told["theta"]["beta"] == pytest.approx(0.45, rel=0.2)


def test_select_says_which_laws_survive(table):
    code, plain, words = call("select", table, "--json", "-")
    told = json.loads(plain)
    assert code == 0
    assert set(told["survivors"]) == {law["law"] for law in told["laws"] if law["survives"]}
    assert "Best out of sample" in words
    assert told["failed"]["repeated"].startswith("needs exposures")


def test_answer_takes_prices_and_environments(tmp_path):
    both = pd.concat([loss_world(0.01).assign(env=name) for name in ("a", "b")])
    both.to_parquet(tmp_path / "both.parquet")
    prices = ("--cost-per-transition", 0.01, "--cost-per-gpu-hour", 2, "--hours", 10, "--budget", 100)
    asked = ("answer", tmp_path / "both.parquet", "--by", "env", "--law", "additive", "--bootstrap", 40)
    code, plain, words = call(*asked, *prices, "--json", "-")
    told = json.loads(plain)
    assert code == 0
    assert set(told["answers"]) == set(told["holm"]) == {"a", "b"}
    assert told["answers"]["a"]["spending"]["budget"] == 100
    assert "after Holm" in words


def test_next_writes_a_sweep_and_power_reads_it(tmp_path):
    frame = with_specs(loss_world(0.01), [1e-3]).assign(draw=lambda f: f["seed"])
    frame["spec"] = frame["spec"].str.replace(r"copy\d.hdf5", "embedded:hopper-mini-v5", regex=True)
    frame.to_parquet(tmp_path / "t.parquet")
    code, _, said = call("next", tmp_path / "t.parquet", "--runs", 4, "--out", tmp_path / "more.yaml")
    assert code == 0
    assert said.count("of the variance") == 4
    code, said, _ = call(
        "power", tmp_path / "more.yaml", "--like", tmp_path / "t.parquet", "--repeats", "5", "--worlds", 10
    )
    assert code == 0
    assert "(10 worlds each)" in " ".join(said.split())


def test_a_table_of_the_last_version_still_says_what_to_run_next(tmp_path):
    """Its specs name one target return; the sweep that is written names a list."""
    recorded = ROOT / "analysis" / "results" / "models_on_hopper_mini.parquet"
    assert '"target_return": 3600.0' in results.read_frame(recorded)["spec"].iloc[0]
    base = upgraded(json.loads(results.read_frame(recorded)["spec"].iloc[0]))
    assert from_dict(base).evaluate.targets == (3600.0,)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fit", "T", "--law", "aditive"], "did you mean 'additive'"),
        (["fit", "T", "--loss", "los"], "no column 'los'"),
        (["answer", "T", "--law", "power_n"], "an answer needs a law in N and D; power_n takes N"),
        (["answer", "T", "--budget", "5"], "--budget needs --cost-per-transition"),
        (["answer", "T", "--cost-per-gpu-hour", "5"], "give both --cost-per-transition"),
        (["answer", "T", "--by", "env"], "no column 'env'"),
        (["fit", "T", "--column", "N"], "must be NAME=VALUE: 'N'"),
        (["fit", "T", "--column", "D=6*M"], "column D: cannot compute '6*M'"),
        (["fit", "T", "--where", "width"], "where must be true or false"),
        (["select", "T", "--loss", "status"], "row 0 holds 'done'"),
        (["next", "T", "--narrow", "gama"], "nothing called 'gama' to narrow"),
        (["power", "none.yaml", "--seed-sd", "0.1", "--set", "E=x"], "--set takes numbers"),
        (["power", "none.yaml", "--set", "E=1"], "--seed-sd is needed"),
        (["power", "none.yaml", "--like", "T", "--repeats", "0"], "--repeats must be at least 1"),
        (["fit", "none.parquet"], "none.parquet: no such file"),
        (["report", "none.parquet"], "none.parquet: no such file"),
        (["fit", "T", "--delta", "0"], "Invalid value for '--delta'"),
        (["fit", "T", "--bootstrap", "x"], "Invalid value for '--bootstrap'"),
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


@pytest.mark.parametrize(
    "verb", ["plan", "profile", "run", "status", "collect", "fit", "select", "answer", "next", "power", "report"]
)
def test_every_verb_explains_itself(verb):
    code, said, _ = call(verb, "--help")
    assert code == 0
    assert "SWEEP" in said or "TABLE" in said
    assert verb in call("--help")[1]


def test_figures_draw_every_run_and_label_axes_from_the_schema():
    looked_at = study(loss_world(0.01), "additive", draws=30)
    drawn: list[Axes] = [
        figures.loss_against(looked_at.ensemble, "D", "loss_best"),
        figures.law_with_band(looked_at.ensemble, "N", "loss_best"),
        decisions.contours(looked_at.ensemble, looked_at.answer),
        decisions.tornado(looked_at.ensemble, looked_at.answer),
    ]
    assert len(drawn[0].collections[0].get_offsets()) == 50
    assert drawn[0].get_xlabel() == "D [transitions]"
    assert drawn[1].get_xlabel() == "N [parameters]"
    assert max(np.max(line.get_xdata()) for line in drawn[1].lines[:1]) == pytest.approx(2 * 1.4e5)
    cells = next(line for line in drawn[2].lines if line.get_label() == "configurations that were run")
    assert len(cells.get_xdata()) == 50
    assert len(drawn[3].patches) == 2


NOTEBOOKS = sorted((ROOT / "analysis").glob("*.ipynb"))


def memory_table(path: Path) -> Path:
    """Runs on T-mazes, as far as a notebook looks at them."""
    rows = [
        {
            "run_id": f"{kind}{init}{horizon}",
            "status": "done",
            "kind": kind,
            "seed": 0,
            "return_mean": 1.0 / horizon,
            "spec": json.dumps({"data": {"horizon": horizon}, "model": {"dt_init": init, "branches": "both"}}),
        }
        for kind, init in (("mambadm", "log_uniform"), ("mambadm", "zero_bias"), ("bc", "log_uniform"))
        for horizon in (5, 10)
    ]
    results.write_table(pa.Table.from_pylist(rows, schema=results.SCHEMA), path)
    return path


def diversity_table(path: Path) -> Path:
    """Runs on subsets of two sizes, chosen in two ways."""
    rows = [
        {
            "run_id": f"{size}{selection}{seed}",
            "status": "done",
            "loss_best": 1.0 / cover + 0.01 * seed,
            **dict.fromkeys(("coverage", "entropy", "return_sd"), cover + 0.1 * seed),
            "episodes": 7 - seed,
            "spec": json.dumps({"data": {"transitions": size, "selection": selection, "segment": None}}),
        }
        for size in (100, 300)
        for selection, cover in (("random", 2.0), ("top_return", 1.0))
        for seed in range(3)
    ]
    results.write_table(pa.Table.from_pylist(rows, schema=results.SCHEMA), path)
    return path


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_run_on_any_table(path, table, tmp_path):
    made = {"02": memory_table, "04": diversity_table}
    if path.stem[:2] in made:
        table = made[path.stem[:2]](tmp_path / "made.parquet")
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    parameter = next(cell for cell in cells if "parameters" in cell.metadata.get("tags", []))
    parameter.source = f"TABLE = {str(table)!r}\nLOCAL = TABLE\nUPDATES = 2"
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


def test_there_are_notebooks():
    assert NOTEBOOKS
