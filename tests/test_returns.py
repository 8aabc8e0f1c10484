"""What runs returned: from tables to groups, comparisons, pictures and the verb."""

import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from click.testing import CliRunner

from scaling import comparison as comparisons, episodes, outcomes as returned, results, return_figures as pictures
from scaling.cli import main
from scaling.errors import UserError
from scaling.table import Table, read

from conftest import with_specs

TABLES = (Path(__file__).parents[1] / "analysis" / "results").glob("*.parquet")
RECORDED = sorted(path for path in TABLES if path.stem not in ("diversity", "first_study.episodes"))
"""Tables of runs that were rolled out."""
WIDTHS, FRACTIONS = {16: 9e3, 32: 3.5e4, 64: 1.4e5}, {0.25: 1.2e4, 0.5: 2.4e4, 1.0: 4.8e4}


def runs(seeds: int = 3, spread: float = 3.0, **changes) -> pd.DataFrame:
    """A results table whose loss falls, and whose returns rise, with width and data."""
    generator = np.random.default_rng(0)
    rows = [
        {"N": n, "D": d, "width": width, "depth": 1, "fraction": fraction, "draw": 0, "seed": seed, "status": "done"}
        for width, n in WIDTHS.items()
        for fraction, d in FRACTIONS.items()
        for seed in range(seeds)
    ]
    frame = pd.DataFrame(rows)
    frame["loss"] = (0.1 + 2 * frame["N"] ** -0.4 + 3 * frame["D"] ** -0.45) * np.exp(
        0.01 * generator.normal(size=len(frame))
    )
    frame["loss_best"] = frame["loss"]
    quality = 100 / (1 + np.exp((np.log(frame["loss"]) - np.log(0.17)) / 0.05))
    frame["returns"] = [q + spread * generator.normal(size=6) for q in quality]
    return frame.assign(run_id=[f"run{row}" for row in range(len(frame))], kind="mambadm").assign(**changes)


def played(frame: pd.DataFrame, targets: tuple[float, ...] = (3600.0,), score: bool = True) -> pd.DataFrame:
    """The table of episodes that goes with these runs; later targets pay one reward more each."""
    rows = [
        {"run_id": row["run_id"], "env": "Hopper-v5", "target": target, "episode": number, "seed": 10 + number}
        | {"return": value + more, "length": 9, "score": (value + more) / 2 if score else None}
        for row in frame.to_dict("records")
        for more, target in enumerate(targets)
        for number, value in enumerate(row["returns"])
    ]
    return pd.DataFrame(rows).astype({"score": float})


def write_episodes(frame: pd.DataFrame, path: Path) -> None:
    results.write_table(episodes.table_of(frame.to_dict("records")), path)


def write(frame: pd.DataFrame, path: Path, rolled: pd.DataFrame | None = None) -> Path:
    """Both tables as collect would write them."""
    rows = frame.astype({"N": int, "D": int}).to_dict("records")
    results.write_table(pa.Table.from_pylist(rows, schema=results.SCHEMA), path)
    if rolled is not None:
        write_episodes(rolled.astype(object).where(rolled.notna(), None), episodes.beside(path))
    return path


def outcomes(frame: pd.DataFrame | None = None, **options) -> returned.Outcomes:
    frame = runs() if frame is None else frame
    rolled = options.pop("episodes") if "episodes" in options else played(frame)
    return returned.outcomes(Table(frame), rolled, **options)


def compared(given: returned.Outcomes, **options) -> comparisons.Comparison:
    return comparisons.compare(given, np.random.default_rng(0), options.pop("draws", 200), **options)


def call(*arguments: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(main, ["returns", *map(str, arguments)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


def test_a_run_is_worth_the_mean_of_its_episodes():
    frame = runs()
    given = outcomes(frame)
    assert given.metric == "score"
    assert given.target == 3600
    np.testing.assert_allclose(given.runs["value"], [np.mean(values) / 2 for values in frame["returns"]])
    raw = outcomes(frame, metric="return")
    np.testing.assert_allclose(raw.runs["value"], 2 * given.runs["value"])
    assert (given.label, raw.label) == ("score [%]", "return [reward]")


def test_without_a_table_of_episodes_the_returns_of_the_rows_say_the_same():
    frame = with_specs(runs(), [1e-3])
    lists, table = (outcomes(frame, episodes=rolled, metric="return") for rolled in (None, played(frame)))
    np.testing.assert_allclose(lists.runs["value"], table.runs["value"])
    name = lists.configurations[0]
    np.testing.assert_allclose(lists.by_start(name), table.by_start(name))
    assert "no table of episodes: the returns in the table itself are used" in lists.notes


def test_scores_of_listed_returns_are_those_of_the_environment():
    frame = with_specs(runs(), [1e-3])
    specs = [json.loads(spec) for spec in frame["spec"]]
    for spec in specs:
        spec["evaluate"] |= {"env": "Hopper-v5", "target_return": 3600.0, "seed": 7}
    given = outcomes(frame.assign(spec=[json.dumps(spec) for spec in specs]), episodes=None)
    assert given.metric == "score"
    assert given.target == 3600
    expected = 100 * (np.mean(frame["returns"][0]) + 20.272305) / (3234.3 + 20.272305)
    assert given.runs["value"][0] == pytest.approx(expected)
    assert given.played["start"][0] == "Hopper-v5/7/0"


def test_configurations_are_named_by_what_differs_in_their_specs():
    frame = with_specs(runs(), [1e-3])
    assert outcomes(frame).configurations[:2] == ["width=16, fraction=0.25", "width=16, fraction=0.5"]
    assert len(outcomes(frame).configurations) == 9
    two = with_specs(runs(seeds=4), [1e-3, 2e-3])
    assert outcomes(two).configurations[1] == "width=16, fraction=0.25, learning_rate=0.002"
    one = frame[(frame["width"] == 16) & (frame["fraction"] == 1)]
    assert outcomes(one).configurations == ["all runs"]


def test_a_field_that_only_repeats_others_is_not_in_the_name():
    """Here the digest of the dataset follows the width."""
    frame = with_specs(runs(), [1e-3])
    frame["dataset"] = frame["width"].map(lambda width: f"{width:064d}")
    given = outcomes(frame)
    assert given.configurations[0] == "width=16, fraction=0.25"
    assert "3 datasets, whose losses do not compare; --where keeps one" in given.notes


def test_tables_without_specs_are_named_by_their_columns():
    assert outcomes().configurations[0] == "width=16, fraction=0.25"


def test_groups_may_be_asked_for_and_say_that_they_mix():
    given = outcomes(by=["width"])
    assert given.configurations == ["width=16", "width=32", "width=64"]
    assert "groups hold up to 3 configurations each, whose differences count as spread" in given.notes
    assert given.runs["cell"].nunique() == 9
    by_field = outcomes(with_specs(runs(), [1e-3]), by=["model.context", "fraction"])
    assert by_field.configurations == [f"context=20, fraction={f:g}" for f in FRACTIONS]


def test_the_first_of_several_targets_is_taken_and_said():
    frame = runs()
    both = played(frame, (3600.0, 1800.0))
    first, second = outcomes(frame, episodes=both), outcomes(frame, episodes=both, target=1800.0)
    assert first.target == 3600
    assert "several targets (3600, 1800): the first, 3600, is used; --target chooses" in first.notes
    np.testing.assert_allclose(second.runs["value"], first.runs["value"] + 0.5)
    assert not second.notes


def test_missing_scores_give_returns_and_are_said():
    frame = runs()
    given = outcomes(frame, episodes=played(frame, score=False))
    assert given.metric == "return"
    assert "no reference returns for Hopper-v5: raw returns are used instead of scores" in given.notes


def test_failed_runs_and_those_without_episodes_are_counted():
    frame = runs()
    frame.loc[0, "status"] = "failed"
    rolled = played(frame)
    given = outcomes(frame, episodes=rolled[rolled["run_id"] != "run5"])
    assert dict(given.refused) == {"failed run": 1, "run without episodes": 1}
    assert len(given.runs) == 25


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        (lambda f: f, {"target": 5.0}, "no episode was asked for a return of 5; targets: 3600"),
        (lambda f: f, {"by": ["widht"]}, "--by widht: neither a column nor a field of the spec"),
        (lambda f: f, {"episodes": played(runs(), score=False), "metric": "score"}, "use --metric return"),
        (lambda f: f.assign(run_id="same"), {}, "run same stands in the table twice"),
        (lambda f: f, {"episodes": played(runs().assign(run_id="other"))}, "no episode belongs to a run"),
        (lambda f: f, {"episodes": pd.concat([played(runs())] * 2)}, "run run0: episode 0 stands there twice"),
        (lambda f: f.assign(returns=None), {"episodes": None}, "no run has returns"),
        (
            lambda f: f,
            {"episodes": played(runs()).assign(**{"return": np.nan}), "metric": "return"},
            "run run0: episode 0 has no finite return",
        ),
    ],
)
def test_tables_that_do_not_fit_are_refused(change, options, said):
    with pytest.raises(UserError, match=said):
        outcomes(change(runs()), **options)


def test_bigger_and_longer_trained_runs_come_out_best_and_beat_the_lowest():
    found = compared(outcomes())
    assert found.unit == "run"
    assert found.best == "width=64, fraction=1"
    assert found.baseline == "width=16, fraction=0.25"
    rows = {row.name: row for row in found.rows}
    best = rows[found.best]
    assert (best.runs, best.episodes, best.starts) == (3, 18, 6)
    assert best.above.value == 1
    assert 0 < best.gain.low < best.gain.value < best.gain.high
    assert best.iqm.low <= best.iqm.value <= best.iqm.high
    assert rows[found.baseline].above is None
    assert rows[found.baseline].gain is None


def test_a_baseline_may_be_named_and_signs_turn():
    found = compared(outcomes(), baseline="width=64, fraction=1")
    lowest = next(row for row in found.rows if row.name == "width=16, fraction=0.25")
    assert lowest.above.value == 0
    assert lowest.gain.high < 0
    assert not any("flattered" in note for note in found.notes)
    with pytest.raises(UserError, match=r"no configuration 'width=7'; there are: width=16, fraction=0\.25; "):
        compared(outcomes(), baseline="width=7")


def test_configurations_trained_once_have_intervals_over_episodes_and_say_so():
    found = compared(outcomes(runs(seeds=1)))
    assert found.unit == "episode"
    assert "9 of 9 configurations were trained once" in found.notes[0]
    row = found.rows[0]
    assert row.mean.low < row.mean.value < row.mean.high
    assert "intervals of fewer than 5 runs are too narrow: 3 runs" in compared(outcomes()).notes[0]
    assert not any("too narrow" in note for note in compared(outcomes(runs(seeds=5))).notes)


def test_the_same_seed_gives_the_same_intervals():
    first, second = (compared(outcomes()).rows[3] for _ in range(2))
    assert (first.iqm.low, first.gain.high) == (second.iqm.low, second.gain.high)


def test_environments_are_tasks_and_must_be_played_equally_often():
    frame = runs(seeds=4)
    rolled = played(frame)
    ant = set(frame["run_id"][frame["seed"] % 2 == 1])
    rolled["env"] = np.where(rolled["run_id"].isin(ant), "Ant-v5", "Hopper-v5")
    given = outcomes(frame, episodes=rolled)
    name = given.configurations[0]
    assert given.by_task(name, "run").shape == (2, 2)
    assert given.tasks(name) == ("Ant-v5", "Hopper-v5")
    assert not compared(given).rows[1].starts
    with pytest.raises(UserError, match="has unequal numbers of runs"):
        outcomes(frame[frame["run_id"] != "run1"], episodes=rolled).by_task(name, "run")


def test_what_met_other_starts_is_not_compared_in_pairs():
    frame = runs()
    rolled = played(frame)
    moved = rolled["run_id"].isin(frame["run_id"][frame["width"] == 64])
    found = compared(outcomes(frame, episodes=rolled.assign(seed=rolled["seed"] + 100 * moved)))
    apart = [row for row in found.rows if row.name.startswith("width=64")]
    assert all(row.gain is None and row.above is not None for row in apart)
    assert any(note.startswith("not compared with the baseline, for they met other starts: ") for note in found.notes)


def test_a_profile_has_a_line_and_a_band_per_configuration():
    given = outcomes()
    found = compared(given)
    axes = pictures.profiles(given, found, np.random.default_rng(0))
    assert len(axes.lines) == len(axes.collections) == pictures.MOST_PROFILES
    shape = axes.lines[-1].get_ydata()
    assert (shape[0], shape[-1]) == (1, 0)
    assert axes.get_xlabel() == "score [%]"
    assert axes.get_ylabel() == "share of runs above"
    assert axes.get_title().endswith("6 of 9")


def test_means_stand_where_their_size_is_with_a_colour_per_fraction():
    given = outcomes()
    found = compared(given)
    axes = pictures.mean_against(given, found)
    assert axes.get_xlabel() == "N [parameters]"
    assert axes.get_ylabel() == "interquartile mean of score [%]"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["0.25", "0.5", "1"]
    middle = axes.containers[1].lines[0]
    np.testing.assert_allclose(middle.get_xdata(), list(WIDTHS.values()))
    expected = [float(row.iqm.value) for row in found.rows if row.name.endswith("fraction=0.5")]
    np.testing.assert_allclose(middle.get_ydata(), expected)


@pytest.mark.parametrize(
    ("change", "label"),
    [
        (lambda f: f[f["width"] == 16], "D [transitions]"),
        (lambda f: f[f["fraction"] == 1], "N [parameters]"),
        (
            lambda f: f.assign(kind=np.where(f["width"] == 16, "bc", "mambadm")),
            "interquartile mean of score [%]",
        ),
    ],
)
def test_means_are_drawn_along_what_varies(change, label):
    given = outcomes(change(runs()))
    assert pictures.mean_against(given, compared(given)).get_xlabel() == label


def test_the_page_closes_what_it_opens():
    given = outcomes()
    figure = pictures.page(given, compared(given), "loss", None, np.random.default_rng(0))
    assert len(figure.axes) == 3
    assert figure.axes[2].get_xlabel() == "loss"
    assert plt.get_fignums() == []


def test_the_verb_prints_draws_and_writes_the_same(tmp_path):
    frame = with_specs(runs(), [1e-3])
    table = write(frame, tmp_path / "t.parquet", played(frame))
    figure = tmp_path / "deep" / "out.png"
    code, said, _ = call(table, "--bootstrap", 60, "--figure", figure, "--json", tmp_path / "t.json")
    assert code == 0
    assert said.startswith("score [%] of 27 runs, 162 episodes; asked for 3600; 95% intervals resample runs")
    assert figure.read_bytes().startswith(b"\x89PNG")
    told = json.loads((tmp_path / "t.json").read_text())
    assert told["best"] == "width=64, fraction=1"
    assert f"{told['best']} (best)" in said
    assert len(told["configurations"]) == 9
    for row in told["configurations"]:
        assert row["mean"]["low"] <= row["mean"]["value"] <= row["mean"]["high"]
    assert told["agreement"]["every"]["spearman"] < -0.9
    assert told["link"]["parameters"]["mid"] == pytest.approx(np.log(0.17), abs=0.1)
    assert told["link"]["refits"] == 60
    assert "predicts" in said


def test_the_verb_prefers_the_episodes_beside_the_table_and_takes_others_on_demand(tmp_path):
    frame = with_specs(runs(), [1e-3])
    table = write(frame, tmp_path / "t.parquet", played(frame))
    other = tmp_path / "other.parquet"
    write_episodes(played(frame, (1800.0,)), other)
    assert "asked for 3600" in call(table, "--bootstrap", 20)[1]
    assert "asked for 1800" in call(table, "--bootstrap", 20, "--episodes", other)[1]
    episodes.beside(table).unlink()
    assert "note: no table of episodes" in call(table, "--bootstrap", 20)[1]


def test_json_to_stdout_leaves_words_on_stderr(tmp_path):
    table = write(runs(), tmp_path / "t.parquet", played(runs()))
    code, plain, words = call(table, "--bootstrap", 20, "--json", "-", "--by", "width, fraction", "--where", "seed < 2")
    assert code == 0
    assert json.loads(plain)["left_out"] == {"not where seed < 2": 9}
    assert "left out: 9 not where seed < 2" in words


def test_a_constant_loss_leaves_the_comparison_and_says_why_there_is_no_link(tmp_path):
    table = write(runs(loss=0.2, loss_best=0.2), tmp_path / "t.parquet", played(runs()))
    code, said, _ = call(table, "--bootstrap", 20)
    assert code == 0
    assert "no link: loss is 0.2 in every run; a relation needs it to vary" in said
    assert "width=64, fraction=1 (best)" in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--loss", "lost"), "--loss lost: no such column"),
        (("--target", "7"), "no episode was asked for a return of 7"),
        (("--by", "nothing"), "--by nothing: neither a column nor a field of the spec"),
        (("--baseline", "x"), "no configuration 'x'"),
        (("--episodes", "missing.parquet"), "missing.parquet: no such file"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_two(tmp_path, options, said):
    table = write(runs(), tmp_path / "t.parquet", played(runs()))
    code, _, words = call(table, "--bootstrap", 20, *options)
    assert code == 2
    assert said in words
    assert words.count("\n") == 1


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_recorded_tables_are_read(path):
    given = returned.outcomes(read(path))
    recorded = read(path).frame
    np.testing.assert_allclose(
        given.played.groupby("run_id")["value"].count().loc[given.runs["run_id"]], recorded["returns"].map(len)
    )
    worth = "score" if given.metric == "score" else "return_mean"
    np.testing.assert_allclose(given.runs["value"], recorded[worth], rtol=1e-9)
