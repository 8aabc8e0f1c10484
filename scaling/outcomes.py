"""What the runs of a results table returned, episode by episode, and which runs are one configuration."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from scaling import data, episodes, results
from scaling.errors import UserError
from scaling.scores import normalised
from scaling.spec import upgraded
from scaling.table import Table

SCORE, RETURN = "score", "return"
RUN, EPISODE = "run", "episode"
"""What is resampled: training runs, or episodes where a configuration was trained only once."""
DEAREST = ("model.kind", "model.width", "model.depth", "data.fraction")
"""Fields that name a configuration before all others do."""
ALL = "all runs"
DIGEST = 40
"""Characters from which on a value is a digest."""


@dataclass(frozen=True, eq=False)
class Outcomes:
    """Runs that were rolled out, with their episodes."""

    runs: pd.DataFrame
    """A row per run: the columns of the table, and

    ``value``, the mean over the run's episodes; ``configuration``, the group it is shown in; ``cell``, what it shares
    with runs that differ in seed or draw alone.
    """
    played: pd.DataFrame
    """A row per episode: run_id, configuration, env, start and value; equal starts are equal across runs."""
    metric: str
    target: float | None
    """Return that was asked for, where that is known."""
    refused: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """Axis label of a value."""
        unit = next(column.unit for column in episodes.COLUMNS if column.name == self.metric)
        return f"{self.metric} [{unit}]"

    @property
    def configurations(self) -> list[str]:
        """Names, in the order of the table."""
        return list(dict.fromkeys(self.runs["configuration"]))

    def by_start(self, configuration: str) -> pd.DataFrame:
        """(run, start) values of the starts that all runs of the configuration met."""
        mine = self.played[self.played["configuration"] == configuration]
        return mine.pivot(index="run_id", columns="start", values="value").dropna(axis=1)

    def by_task(self, configuration: str, unit: str) -> np.ndarray:
        """(run, task) means of the runs, or (episode, task) values; a task is an environment.

        Raises:
            UserError: the environments were not played equally often.

        """
        mine = self.played[self.played["configuration"] == configuration]
        if unit == RUN:
            mine = mine.groupby(["env", "run_id"], sort=False)["value"].mean().reset_index()
        columns = [values.to_numpy() for _, values in mine.groupby("env")["value"]]
        if len({len(column) for column in columns}) > 1:
            counts = ", ".join(f"{env}: {count}" for env, count in mine.groupby("env").size().items())
            raise UserError(f"{configuration} has unequal numbers of {unit}s ({counts}); keep one with --where or --by")
        return np.stack(columns, axis=1)

    def tasks(self, configuration: str) -> tuple[str, ...]:
        """Environments that the configuration was played in."""
        return tuple(sorted(self.played.loc[self.played["configuration"] == configuration, "env"].unique()))


def outcomes(
    table: Table,
    played: pd.DataFrame | None = None,
    by: Sequence[str] = (),
    target: float | None = None,
    metric: str | None = None,
) -> Outcomes:
    """The runs of a table that were rolled out.

    Args:
        table: runs; failed ones and those without episodes are counted and left out.
        played: table of episodes; without one, the runs' own ``returns``.
        by: columns, or dotted fields of the spec, that make a configuration; by default all in which specs differ,
            other than the seed and the draw of the subset.
        target: return that was asked for; by default the first in the table.
        metric: ``score`` or ``return``; by default scores where every episode has one.

    Raises:
        UserError: nothing was rolled out, or a column, target or score is missing.

    """
    frame, refused = _ended(table)
    notes = [] if played is not None else ["no table of episodes: the returns in the table itself are used"]
    every = _unnested(frame) if played is None else played[played["run_id"].isin(frame["run_id"])]
    every, asked, said = _of_target(every, target)
    metric, why = _metric(every, metric)
    every = every.assign(value=every[metric].astype(float), start=_starts(every))
    _check(every)
    mean = every.groupby("run_id")["value"].mean()
    runs = frame[frame["run_id"].isin(mean.index)].reset_index(drop=True)
    if len(runs) < len(frame):
        refused["run without episodes"] = len(frame) - len(runs)
    cell = configurations(runs)
    runs = runs.assign(
        cell=cell, configuration=configurations(runs, by) if by else cell, value=runs["run_id"].map(mean)
    )
    every = every.merge(runs[["run_id", "configuration"]], on="run_id")
    kept = every[["run_id", "configuration", "env", "start", "value"]]
    return Outcomes(runs, kept, metric, asked, refused, (*notes, *said, *why, *_mixed(runs)))


def configurations(frame: pd.DataFrame, by: Sequence[str] = ()) -> list[str]:
    """(row,) name of each run's configuration, such as ``width=64, fraction=0.5``."""
    if by:
        parts = _columns(frame, by)
    elif data.has_specs(frame):
        settings = data.settings(frame).drop(columns=["seed", "data.draw"])
        parts = _telling(settings[sorted(settings, key=lambda name: _rank(str(name)))])
    else:
        parts = _telling(frame[[name for name in data.SETTINGS if name in frame]])
    names = {str(name): str(name).rpartition(".")[2] for name in parts}
    rows = parts.to_dict("records")
    return [", ".join(f"{names[str(key)]}={_short(value)}" for key, value in row.items()) or ALL for row in rows]


def _rank(name: str) -> int:
    """Place of a field in the name of a configuration; what only repeats other fields comes last and is dropped."""
    if name in DEAREST:
        return DEAREST.index(name)
    return len(DEAREST) + (1 if name.startswith(("model.", "data.")) else 2) + 10 * (name == "dataset")


def _telling(parts: pd.DataFrame) -> pd.DataFrame:
    """The columns without those that split nothing which the columns before them leave together."""
    kept: list[str] = []
    groups = 1
    words = parts.map(str)
    for name in words:
        finer = words.groupby([*kept, name], sort=False).ngroups
        if finer > groups:
            kept, groups = [*kept, str(name)], finer
    return parts[kept]


def _columns(frame: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    dotted = [name for name in by if name not in frame]
    try:
        frame = results.with_fields(frame, *dotted) if dotted else frame
    except (KeyError, TypeError) as error:
        known = ", ".join(map(str, frame.columns))
        raise UserError(
            f"--by {','.join(by)}: neither a column nor a field of the spec; columns: {known}; "
            "a field is written as model.context"
        ) from error
    return frame[list(by)]


def _short(value: object) -> str:
    """A value as it stands in a name; digests are cut."""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) < DIGEST else text[:12]


def _ended(table: Table) -> tuple[pd.DataFrame, dict[str, int]]:
    """The runs that did not fail, each with a name, and why rows were left out."""
    frame, refused = table.frame, dict(table.refused)
    if "status" in frame and (frame["status"] == "failed").any():
        refused["failed run"] = int((frame["status"] == "failed").sum())
        frame = frame[frame["status"] != "failed"]
    frame, untuned = data.without_untuned(frame)
    refused |= untuned
    frame = frame.reset_index(drop=True)
    if "run_id" not in frame:
        frame = frame.assign(run_id=[str(row) for row in range(len(frame))])
    twice = frame["run_id"][frame["run_id"].duplicated()]
    if len(twice):
        raise UserError(f"run {twice.iloc[0]} stands in the table twice; each run may stand there once")
    return frame, refused


def _unnested(frame: pd.DataFrame) -> pd.DataFrame:
    """Episodes from the lists of returns in the table."""
    if "returns" not in frame or not frame["returns"].notna().any():
        raise UserError(
            "no run has returns: there is no table of episodes, and column 'returns' is empty; give --episodes, or "
            "set evaluate.env in the sweep"
        )
    rows = []
    for row in frame[frame["returns"].notna()].to_dict("records"):
        how = upgraded(json.loads(row["spec"]))["evaluate"] if isinstance(row.get("spec"), str) else {}
        env, first = how.get("env") or "", how.get("seed", 0)
        known = {"run_id": row["run_id"], "env": env, "target": (how.get("targets") or [np.nan])[0]}
        rows += [
            known | {"episode": number, "seed": first + number, "return": value, "score": normalised(env, value)}
            for number, value in enumerate(row["returns"])
        ]
    return pd.DataFrame(rows)


def _of_target(every: pd.DataFrame, target: float | None) -> tuple[pd.DataFrame, float | None, list[str]]:
    """The episodes of one target, the target, and what to say about others."""
    if not len(every):
        raise UserError("no episode belongs to a run of the table; collect both from the same runs")
    known = [float(value) for value in every["target"].dropna().unique()]
    shown = ", ".join(f"{value:g}" for value in known) or "none"
    if target is not None and target not in known:
        raise UserError(f"no episode was asked for a return of {target:g}; targets: {shown}")
    if not known:
        return every, None, []
    chosen = known[0] if target is None else target
    others = len(known) > 1 and target is None
    said = [f"several targets ({shown}): the first, {chosen:g}, is used; --target chooses"] if others else []
    return every[every["target"] == chosen], chosen, said


def _metric(every: pd.DataFrame, metric: str | None) -> tuple[str, list[str]]:
    if metric == RETURN or every[SCORE].notna().all():
        return metric or SCORE, []
    without = ", ".join(sorted(set(every.loc[every[SCORE].isna(), "env"]))) or "these episodes"
    if metric == SCORE:
        raise UserError(f"no reference returns for {without}, so there are no scores; use --metric return")
    return RETURN, [f"no reference returns for {without}: raw returns are used instead of scores"]


def _starts(every: pd.DataFrame) -> list[str]:
    columns = [every[name].astype(str) for name in ("env", "seed", "episode")]
    return ["/".join(parts) for parts in zip(*columns, strict=True)]


def _check(every: pd.DataFrame) -> None:
    wrong = every[~np.isfinite(every["value"])]
    if len(wrong):
        raise UserError(f"run {wrong['run_id'].iloc[0]}: episode {wrong['episode'].iloc[0]} has no finite return")
    twice = every[every.duplicated(["run_id", "start"])]
    if len(twice):
        raise UserError(f"run {twice['run_id'].iloc[0]}: episode {twice['episode'].iloc[0]} stands there twice")


def _mixed(runs: pd.DataFrame) -> list[str]:
    """What is thrown together in a way that a reader should know."""
    said = []
    finer = runs.groupby("configuration")["cell"].nunique()
    if finer.max() > 1:
        said.append(f"groups hold up to {finer.max()} configurations each, whose differences count as spread")
    if "dataset" in runs and runs["dataset"].nunique() > 1:
        said.append(f"{runs['dataset'].nunique()} datasets, whose losses do not compare; --where keeps one")
    return said
