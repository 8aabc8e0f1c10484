"""Every sweep in the repository says something that can be run, and presets are the published configurations."""

import re
from pathlib import Path

import pytest

from scaling import grid, plug
from scaling.identity import check_read
from scaling.spec import Space

ROOT = Path(__file__).parents[1]
SWEEPS = sorted((ROOT / "sweeps").rglob("*.yaml"))
HOPPER = Space(state=11, action=3)
BREAKOUT = Space(state=84, action=4, discrete=True, image=True)


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_a_sweep_is_understood_and_every_field_it_sets_is_read(path):
    sweep = grid.read(path)
    assert sweep.name == path.stem
    assert sweep.question
    check_read(sweep.named, sweep.runs)


@pytest.mark.parametrize(
    ("name", "blocks", "updates"),
    [
        ("gym_decision_transformer", 594_816, 100_000),
        ("gym_dmamba", 2_893_056, 100_000),
        ("gym_mambadm", 4_206_336, 100_000),
        ("atari_decision_transformer", 1_189_632, None),
        ("atari_dmamba", 1_492_224, None),
        ("atari_mambadm", 2_191_104, None),
    ],
)
def test_presets_build_the_published_networks(name, blocks, updates):
    sweep = grid.read(ROOT / "sweeps" / "presets" / f"{name}.yaml")
    assert len({run.model for run in sweep.runs}) == 1
    spec = sweep.runs[0]
    space = BREAKOUT if name.startswith("atari") else HOPPER
    architecture = plug.load("models", spec.model.kind)
    architecture.check(spec.model, space)
    assert architecture.count(spec.model, space)["N_blocks"] == blocks
    assert (spec.train.amount if spec.train.budget == "updates" else None) == updates


def test_every_preset_has_a_page_and_every_model_too():
    pages = {path.stem for path in (ROOT / "analysis" / "models").glob("*.md")} - {"README"}
    assert pages == set(plug.names("models"))
    for preset in (ROOT / "sweeps" / "presets").glob("*.yaml"):
        kind = re.sub("^(gym|atari)_", "", preset.stem)
        assert preset.name in (ROOT / "analysis" / "models" / f"{kind}.md").read_text()
