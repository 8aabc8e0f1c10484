"""Each model keeps the best of what a sweep tunes."""

import json

import pandas as pd
import pyarrow as pa
import pytest

from scaling import grid, results, tuning
from scaling.errors import UserError
from scaling.fit import prepare
from scaling.spec import DataSpec, ModelSpec, RunSpec, TrainSpec, to_dict


def row(width: int, rate: float, loss: float | None, draw: int = 0, fraction: float = 1.0) -> dict:
    spec = RunSpec(
        model=ModelSpec(width=width),
        data=DataSpec(draw=draw, fraction=fraction),
        train=TrainSpec(learning_rate=rate),
        seed=draw,
    )
    status = results.FAILED if loss is None else results.DONE
    return {
        **{"run_id": f"{width}{rate}{draw}{fraction}", "status": status, "loss_best": loss, "width": width},
        **{"N": width * 100, "D": int(1000 * fraction), "fraction": fraction, "draw": draw, "seed": draw},
        "spec": json.dumps(to_dict(spec)),
    }


def marked(rows: list[dict]) -> pd.DataFrame:
    table = pa.Table.from_pylist(rows, schema=results.SCHEMA)
    return tuning.mark(table, ("train.learning_rate",)).to_pandas()


def test_every_size_keeps_the_rate_with_the_lowest_mean_loss():
    rows = [row(w, r, loss) for w, r, loss in ((16, 1e-3, 0.5), (16, 1e-2, 0.4), (64, 1e-3, 0.2), (64, 1e-2, 0.3))]
    rows += [
        row(w, r, loss, draw=1) for w, r, loss in ((16, 1e-3, 0.4), (16, 1e-2, 0.45), (64, 1e-3, 0.2), (64, 1e-2, 0.3))
    ]
    frame = marked(rows)
    kept = frame[frame["tuned"]]
    assert sorted(zip(kept["width"], kept["loss_best"], strict=True)) == [(16, 0.4), (16, 0.45), (64, 0.2), (64, 0.2)]


def test_a_rate_that_diverged_somewhere_is_not_the_best():
    frame = marked([row(16, 1e-3, 0.5), row(16, 1e-2, 0.1), row(16, 1e-3, 0.5, draw=1), row(16, 1e-2, None, draw=1)])
    assert frame["tuned"].tolist() == [True, False, True, False]


def test_fits_leave_out_what_was_not_the_best_and_say_so():
    rows = [
        row(w, r, 1.0 / w + r * 10 + 0.1 / f, fraction=f)
        for w in (16, 32, 64)
        for r in (1e-3, 1e-2)
        for f in (0.5, 1.0)
    ]
    data = prepare(marked(rows), "loss_best", ("N", "D"))
    assert data.rows == 6
    assert data.refused == {"not at its model's best setting": 6}


@pytest.mark.parametrize(
    ("tuned", "said"),
    [
        ("[train.clip]", r"tuned must list axes over fields of train, here none: \['train.clip'\]"),
        ("3", "tuned must list axes"),
        ("[]", "must list"),
    ],
)
def test_what_is_tuned_must_be_an_axis(tmp_path, tuned, said):
    path = tmp_path / "sweep.yaml"
    path.write_text(f"axes: {{model.width: [16, 32]}}\ntuned: {tuned}\n")
    with pytest.raises(UserError, match=said):
        grid.read(path)


def test_a_sweep_says_what_it_tunes(tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text("axes: {model.width: [16, 32], train.learning_rate: [0.1, 0.2]}\ntuned: [train.learning_rate]\n")
    assert grid.read(path).tuned == ("train.learning_rate",)
