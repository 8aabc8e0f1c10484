"""One self-contained HTML page about a study."""

import base64
import io
import re
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from matplotlib.axes import Axes

from scaling import answer as answers, decision_figures as decisions, figures
from scaling.data import SETTINGS
from scaling.flags import explain
from scaling.profile import exponents, profile
from scaling.study import Study


def write(study: Study, path: Path, title: str, figures_folder: Path | None = None) -> None:
    """Write the page to ``path``, all figures inside it, and on request each figure as a PNG of its own."""
    drawn = pictures(study)
    template = resources.files("scaling").joinpath("assets", "report.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    page = environment.from_string(template).render(
        title=title,
        study=study,
        answer=study.answer,
        words=answers.in_words(study.answer).splitlines(),
        figures={caption: "data:image/png;base64," + base64.b64encode(png).decode() for caption, png in drawn.items()},
        parameters=_table(study.parameters()),
        laws=_table(study.laws()) if study.selection else "",
        cells=_table(cells(study)),
        failed=study.frame[study.frame["status"] == "failed"] if "status" in study.frame else study.frame[:0],
        explain=explain,
        provenance=provenance(study.frame),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    if figures_folder is not None:
        figures_folder.mkdir(parents=True, exist_ok=True)
        for caption, png in drawn.items():
            (figures_folder / f"{re.sub(r'[^a-z0-9]+', '_', caption.lower()).strip('_')}.png").write_bytes(png)


def pictures(study: Study) -> dict[str, bytes]:
    """The page's figures by caption, as PNG."""
    draws, loss, given = study.ensemble, study.loss, study.answer
    drawn: dict[str, Callable[[], Axes]] = {
        "Runs and fitted law along data": lambda: figures.loss_against(draws, "D", loss),
        "Runs and fitted law along model size": lambda: figures.loss_against(draws, "N", loss),
        "What one doubling is expected to give": lambda: decisions.gain_of_doubling(draws, given.N, given.D),
        "What one doubling gives, law by law": lambda: decisions.tornado(draws, given),
        "The law along data, with its bands, at the largest model": lambda: figures.law_with_band(draws, "D", loss),
        "The law along model size, with its bands, on all data": lambda: figures.law_with_band(draws, "N", loss),
        "Lines of equal loss": lambda: decisions.contours(draws, given),
    }
    if names := exponents(study.fit):
        drawn["How sharply the exponents are determined"] = lambda: decisions.profiles(
            [profile(study.bootstrap, name) for name in names]
        )
    if study.selection is not None:
        found = study.selection
        drawn["Which laws survive extrapolation"] = lambda: decisions.hold_out_errors(found)
    drawn["What the fit leaves unexplained"] = lambda: figures.residuals(study.fit)
    done = study.data.frame
    if "curve" in done:
        drawn["Training curves of all runs"] = lambda: figures.training_curves(done)
    if "score" in done and done["score"].notna().any():
        drawn["Does held-out loss say anything about returns?"] = lambda: figures.score_against_loss(done, loss)
    with figures.style():
        return {caption: _png(draw()) for caption, draw in drawn.items()}


def cells(study: Study) -> pd.DataFrame:
    """Mean and spread of loss and score over the runs of each configuration."""
    frame = study.data.frame
    known = [name for name in SETTINGS if name in frame]
    keys = list(dict.fromkeys([*known, "N", *([] if "fraction" in known else ["D"])]))
    wanted: dict[str, Any] = {"D": "mean", study.loss: ["count", "mean", "std"], "score": "mean"}
    present = {name: how for name, how in wanted.items() if name in frame and name not in keys}
    grouped = frame.groupby(keys, dropna=False).agg(present)
    grouped.columns = pd.MultiIndex.from_tuples([c if isinstance(c, tuple) else (c, "mean") for c in grouped.columns])
    grouped.columns = [
        " ".join(part for part in names if part != "mean" or names[0] == study.loss) for names in grouped.columns
    ]
    return grouped.reset_index()


def provenance(frame: pd.DataFrame) -> dict[str, str]:
    """What the rows say of where they come from, each distinct value once."""
    names = [n for n in ("dataset", "git_commit", "versions", "device", "kernel", "threads") if n in frame]
    return {name: "; ".join(str(value) for value in frame[name].dropna().unique()) for name in names}


def _png(axes: Axes) -> bytes:
    buffer = io.BytesIO()
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def _table(frame: pd.DataFrame) -> str:
    html: str = frame.to_html(index=False, border=0, float_format=lambda x: f"{x:.4g}", na_rep="", escape=True)
    return html
