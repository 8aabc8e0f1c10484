"""Collecting: what the files hold, that a crash costs nothing but time, and what bad requests get."""

import gzip
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import h5py
import numpy as np
import pytest
import torch
from ale_py.vector_env import AtariVectorEnv
from click.testing import CliRunner, Result

from benchmarks import collect as benchmark
from scaling.cli import USER_ERROR, Verbs
from scaling.collect_verb import collect_verb
from scaling.collecting import atari, pool, records, sets
from scaling.collecting.games import Game
from scaling.collecting.rollouts import Walk
from scaling.collecting.sac import Learner
from scaling.collecting.training import Course
from scaling.collecting.worlds import make, make_continuous
from scaling.errors import UserError
from scaling.local_ray import local_ray
from scaling.runs import open_store
from scaling.spec import DataSpec, RunSpec
from scaling.store import Store

GROUP = Verbs("data", [collect_verb])
FILES = ("random", "medium", "medium-replay", "full-replay", "expert")
SAC = ("--env", "Hopper-v5", "--policy", "sac", "--checkpoint-every", "1000", "--rollout-steps", "1_500")
RANDOM = ("--env", "Hopper-v5", "--policy", "random")
BREAKOUT = ("--env", "ALE/Breakout-v5")


def collect(out: Path, *options: str) -> Result:
    return CliRunner().invoke(GROUP, ["collect", "--out", str(out), *options])


def collected(out: Path, *options: str) -> Path:
    result = collect(out, *options)
    assert result.exit_code == 0, result.output
    return out


def columns(path: Path) -> dict[str, np.ndarray]:
    with h5py.File(path) as file:
        return {name: file[name][()] for name in file}


def contents(folder: Path) -> dict[str, bytes]:
    """Every dataset file, byte by byte."""
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.suffix in (".hdf5", ".gz")}


def opened(folder: Path, kind: str, path: str) -> Store:
    return open_store(RunSpec(data=DataSpec(kind=kind, path=path)), folder)


def ends(rows: dict[str, np.ndarray]) -> np.ndarray:
    return rows["terminals"] | rows["timeouts"]


def check_unbroken(rows: dict[str, np.ndarray]) -> None:
    """Within an episode, every observation is the one that the row before led to, and the last row ends one."""
    inside = np.flatnonzero(~ends(rows)[:-1])
    np.testing.assert_array_equal(rows["observations"][inside + 1], rows["next_observations"][inside])
    assert ends(rows)[-1]


@pytest.fixture(scope="module")
def hopper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole collection, trained for a moment."""
    return collected(tmp_path_factory.mktemp("collected") / "hopper", *SAC, "--steps", "2_400")


@pytest.fixture(scope="module")
def two_cores() -> Iterator[None]:
    """A Ray that the tests share."""
    with local_ray(2):
        yield


@pytest.mark.parametrize("name", FILES)
def test_every_file_is_a_dataset_of_unbroken_episodes(hopper, name):
    rows = columns(hopper / f"{name}.hdf5")
    check_unbroken(rows)
    assert {column: (array.dtype.str, array.shape[1:]) for column, array in rows.items()} == {
        "observations": ("<f4", (11,)),
        "actions": ("<f4", (3,)),
        "rewards": ("<f4", ()),
        "next_observations": ("<f4", (11,)),
        "terminals": ("|b1", ()),
        "timeouts": ("|b1", ()),
        "policies": ("<i4", ()),
    }
    store = opened(hopper, "d4rl", f"{name}.hdf5")
    said = json.loads((hopper / "manifest.json").read_text())["files"][f"{name}.hdf5"]
    assert (
        (len(store.states), len(store.terminal))
        == (said["rows"], said["episodes"])
        == (len(rows["rewards"]), ends(rows).sum())
    )
    assert store.returns.mean() == pytest.approx(said["mean_return"], rel=1e-5)
    assert store.about["env_id"] == "Hopper-v5"


def test_replays_are_the_training_up_to_a_checkpoint_and_number_its_policies(hopper):
    manifest = json.loads((hopper / "manifest.json").read_text())
    part, whole = columns(hopper / "medium-replay.hdf5"), columns(hopper / "full-replay.hdf5")
    kept = len(part["rewards"])
    assert manifest["medium_checkpoint"] - 1000 < kept <= manifest["medium_checkpoint"]
    assert 2_000 < len(whole["rewards"]) <= 2_400
    for name, array in part.items():
        np.testing.assert_array_equal(array, whole[name][:kept])
    begins = np.flatnonzero(np.concatenate([[True], ends(whole)[:-1]]))
    assert whole["policies"][begins].tolist() == (begins // 1000).tolist()
    assert (np.diff(whole["policies"]) != 0).sum() == 2
    assert columns(hopper / "expert.hdf5")["policies"].tolist() == [0] * len(
        columns(hopper / "expert.hdf5")["policies"]
    )


def test_rollouts_reach_the_wanted_rows_and_end_with_that_episode(hopper):
    rows = columns(hopper / "random.hdf5")
    last_begin = np.flatnonzero(ends(rows))[-2] + 1
    assert last_begin < 1_500 <= len(rows["rewards"])


def test_random_actions_are_uniform(hopper):
    actions = columns(hopper / "random.hdf5")["actions"]
    shares = np.histogram(actions, bins=4, range=(-1, 1))[0] / actions.size
    np.testing.assert_allclose(shares, 0.25, atol=0.03)


def test_recorded_steps_are_what_the_simulator_does(hopper):
    """Giving the first episode's actions to the bare environment leads to the same rows."""
    rows = columns(hopper / "full-replay.hdf5")
    env = make("Hopper-v5")
    observation, _ = env.reset(seed=int(np.random.SeedSequence([0, 0, 0]).generate_state(1)[0]))
    terminated, step = False, 0
    while not terminated:
        np.testing.assert_array_equal(rows["observations"][step], observation.astype(np.float32))
        observation, reward, terminated, _, _ = env.step(rows["actions"][step])
        np.testing.assert_array_equal(rows["next_observations"][step], observation.astype(np.float32))
        assert (rows["rewards"][step], rows["terminals"][step]) == (np.float32(reward), terminated)
        step += 1
    assert step > 3


@pytest.mark.parametrize(("wanted", "got"), [(1, 3), (3, 3), (4, 7), (7, 7), (8, 12), (14, 14), (99, 14)])
def test_a_set_ends_with_the_episode_that_fills_it(wanted, got):
    pieces = []
    for lengths in ([3, 4], [5, 2]):
        rows = np.zeros(sum(lengths), records.record_type(1, 1))
        rows["timeouts"][np.cumsum(lengths) - 1] = True
        pieces.append(rows)
    assert sum(map(len, records.first_rows(pieces, wanted))) == got


def test_a_finished_collection_is_left_alone_and_another_is_refused(hopper):
    before = {file: file.stat().st_mtime_ns for file in hopper.rglob("*")}
    result = collect(hopper, *SAC, "--steps", "2_400")
    assert (result.exit_code, "is finished; nothing to do" in result.output) == (0, True)
    for options, said in (
        (("--steps", "2_400", "--seed", "1"), "was begun with --seed 0, not 1"),
        (("--steps", "2_000"), "was begun with --steps 2400, not 2000"),
        (("--steps", "2_400", "--checkpoint-every", "2000"), "was begun with --checkpoint-every 1000, not 2000"),
    ):
        result = collect(hopper, *SAC, *options)
        assert (result.exit_code, said in result.output) == (USER_ERROR, True), result.output
    assert {file: file.stat().st_mtime_ns for file in hopper.rglob("*")} == before


def test_more_steps_prolong_a_training(hopper, tmp_path):
    log = (hopper / "transitions.log").read_bytes()
    longer = tmp_path / "longer"
    shutil.copytree(hopper, longer)
    collected(longer, *SAC, "--steps", "2_600")
    assert (longer / "transitions.log").read_bytes().startswith(log)
    rows = columns(longer / "full-replay.hdf5")
    check_unbroken(rows)
    assert 2_400 < len(rows["rewards"]) <= 2_600
    np.testing.assert_array_equal(
        columns(longer / "random.hdf5")["rewards"], columns(hopper / "random.hdf5")["rewards"]
    )
    points = json.loads((longer / "manifest.json").read_text())["checkpoints"]
    assert [point["steps"] for point in points] == [1000, 2000, 2400, 2600]


def test_killed_at_two_random_moments_it_goes_on_from_its_checkpoint(tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-c", "from scaling.collect_verb import collect_verb; collect_verb()"]
    command += [*SAC, "--steps", "2_400", "--rollout-steps", "500", "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    random = np.random.default_rng(int(time.time()))
    kept, item = b"", records.record_type(11, 3).itemsize
    for _ in range(2):
        with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
            before = steps_saved(out)
            while steps_saved(out) == before:
                assert process.poll() is None, process.stderr
                time.sleep(0.05)
            time.sleep(random.uniform(0, 1.0))
            process.send_signal(signal.SIGKILL)
        assert (out / "transitions.log").read_bytes().startswith(kept)
        with (out / "transitions.log").open("ab") as log:
            log.write(b"half a row")
        kept = (out / "transitions.log").read_bytes()[: steps_saved(out) * item]
        assert len(kept) >= 1000 * item
    subprocess.run(command, env=environment, check=True, capture_output=True)
    log_bytes = (out / "transitions.log").read_bytes()
    assert log_bytes.startswith(kept)
    assert len(log_bytes) == 2_400 * item
    rows = columns(out / "full-replay.hdf5")
    check_unbroken(rows)
    assert 2_000 < len(rows["rewards"]) < 2_400


def steps_saved(out: Path) -> int:
    state = out / "state.pt"
    return torch.load(state, weights_only=True)["course"]["steps"] if state.exists() else 0


def test_a_learner_that_was_put_away_goes_on_as_if_it_had_not(tmp_path):
    env = make_continuous("Hopper-v5", "sac")
    walk, generator = Walk(env, (0, 0)), np.random.default_rng(0)
    rows = np.zeros(300, walk.kind)
    first = Learner(env, seed=1, transitions=1000)
    walk.play(rows, first.actor(), generator)
    first.remember(rows)
    first.update(3)
    torch.save(first.state(), tmp_path / "state.pt")
    first.update(3)
    second = Learner(env, seed=2, transitions=1000)
    second.remember(rows)
    second.restore(torch.load(tmp_path / "state.pt", weights_only=True))
    second.update(3)
    for one, other in zip(first.actor().weights, second.actor().weights, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_array_policy_is_the_librarys_policy():
    learner = Learner(make_continuous("Hopper-v5", "sac"), seed=3, transitions=10)
    actor, model = learner.actor(), learner._model
    observation = np.random.default_rng(0).normal(size=11).astype(np.float32)
    with torch.no_grad():
        mean, log_std, _ = model.actor.get_action_dist_params(torch.from_numpy(observation)[None])
    generator = np.random.default_rng(5)
    drawn = np.array([actor.act(observation, generator) for _ in range(4000)])
    np.testing.assert_allclose(np.arctanh(drawn).mean(0), mean[0], atol=0.06)
    np.testing.assert_allclose(np.arctanh(drawn).std(0), log_std[0].exp(), rtol=0.05)


def whole_episodes_ref(rows: np.ndarray) -> list[int]:
    """Places of the rows that belong to episodes with a beginning and an end."""
    kept: list[int] = []
    episode: list[int] = []
    for place, row in enumerate(rows):
        episode = [place] if row["first"] else [*episode, place]
        if row["terminals"] or row["timeouts"]:
            kept += episode
            episode = []
    return kept


@pytest.mark.parametrize("chunk", [1, 2, 7, 50, 1000])
def test_interrupted_episodes_are_left_out_however_the_log_is_cut(chunk):
    generator = np.random.default_rng(chunk)
    rows = np.zeros(300, records.record_type(1, 1))
    rows["rewards"] = np.arange(300)
    rows["first"][[0, *generator.choice(np.arange(1, 300), 40, replace=False)]] = True
    finished = np.flatnonzero(rows["first"][1:])[::2]
    rows["terminals"][finished] = True
    pieces = list(records.whole_episodes(rows[i : i + chunk] for i in range(0, 300, chunk)))
    kept = np.concatenate(pieces)
    assert kept["rewards"].tolist() == whole_episodes_ref(rows)
    assert all(piece["first"][0] and piece["terminals"][-1] for piece in pieces)


@pytest.mark.parametrize(
    ("random", "returns", "chosen"),
    [
        (20.0, [25, 300, 900, 3000, 1000], 3),  # 1000 came after the expert
        (-300.0, [-250, -200, -100, 0], 2),  # a third of the way up from random actions
        (20.0, [100, 90], 1),
        (20.0, [30, 31, 32, 35, 100], 3),
    ],
)
def test_medium_is_a_third_of_the_best_before_the_first_good_one(random, returns, chosen):
    points = [{"steps": steps, "mean_return": value} for steps, value in enumerate(returns, 1)]
    assert sets.medium(Course(random_return=(random, 1.0), checkpoints=points)) == chosen


def test_a_step_limit_is_a_timeout_and_a_fall_is_a_terminal(tmp_path):
    cheetah = collected(tmp_path / "cheetah", "--env", "HalfCheetah-v5", "--policy", "random", "--steps", "1_500")
    rows = columns(cheetah / "random.hdf5")
    assert np.flatnonzero(rows["timeouts"]).tolist() == [999, 1999]
    assert not rows["terminals"].any()
    hopper = collected(tmp_path / "hopper", "--env", "Hopper-v5", "--policy", "random", "--steps", "200")
    rows = columns(hopper / "random.hdf5")
    assert rows["terminals"].sum() > 3
    assert not rows["timeouts"].any()


@pytest.mark.parametrize(
    "options",
    [
        ("--env", "Hopper-v5", "--policy", "random", "--steps", "1_000"),
        (*BREAKOUT, "--policy", "random", "--steps", "900"),
    ],
)
def test_an_interrupted_set_keeps_its_finished_pieces_and_ends_the_same(tmp_path, monkeypatch, options):
    monkeypatch.setattr(sets, "SHARD", 300)
    monkeypatch.setattr(atari, "BLOCK", 300)
    whole = collected(tmp_path / "whole", *options)
    made: list[pool.Piece] = []

    def interrupted(pieces, workers, told):
        for piece in pieces[:1]:
            piece.make()
            told(piece)
        made.extend(pieces[:1])
        raise KeyboardInterrupt

    def counted(pieces, workers, told):
        made.extend(pieces)
        pool.make_all(pieces, workers, told)

    for module in (sets, atari):
        monkeypatch.setattr(module, "make_all", interrupted)
    assert "interrupted" in collect(tmp_path / "cut", *options).output
    for module in (sets, atari):
        monkeypatch.setattr(module, "make_all", counted)
    cut = collected(tmp_path / "cut", *options)
    assert len({piece.path for piece in made}) == len(made) >= 3
    assert contents(cut) == contents(whole)
    assert not (cut / ".parts").exists()


def test_two_workers_make_the_same_files_as_one(hopper, two_cores, tmp_path, monkeypatch):
    """The rollouts of a trained collection are made again with another size, and a game is played."""
    monkeypatch.setattr(sets, "SHARD", 300)
    monkeypatch.setattr(atari, "BLOCK", 200)
    for name in ("hopper-1", "hopper-2"):
        shutil.copytree(hopper, tmp_path / name)
    for name, options in (
        ("hopper", (*SAC[:-1], "1_000", "--steps", "2_400")),
        ("breakout", (*BREAKOUT, "--policy", "random", "--steps", "800")),
    ):
        one = collected(tmp_path / f"{name}-1", *options)
        two = collected(tmp_path / f"{name}-2", *options, "--workers", "2")
        assert contents(one) == contents(two) != {}
    assert 1_000 <= len(columns(tmp_path / "hopper-2" / "expert.hdf5")["rewards"]) < 1_500


def test_an_error_in_a_worker_is_the_error(two_cores):
    class Broken:
        def make(self) -> None:
            raise UserError("no such game")

    with pytest.raises(UserError, match=r"^no such game$"):
        pool.make_all([Broken(), Broken()], 2, lambda piece: None)


def test_a_training_that_got_nowhere_is_told_from_one_that_did():
    points = [{"steps": 1, "mean_return": 30.0}, {"steps": 2, "mean_return": 20.0}]
    assert not sets.learned(Course(random_return=(19.0, 10.0), checkpoints=points))
    assert sets.learned(Course(random_return=(19.0, 5.0), checkpoints=points))


def test_breakouts_log_is_read_back_as_it_was_played(tmp_path):
    out = collected(tmp_path / "log", *BREAKOUT, "--policy", "random", "--steps", "1_200", "--rows-per-file", "1_000")
    store = opened(tmp_path, "dqn_replay", "log")
    said = json.loads((out / "manifest.json").read_text())["files"]
    assert len(said) == 2
    episodes = sum(content["episodes"] for content in said.values())
    assert len(store.terminal) == episodes
    assert len(store.states) == sum(content["rows"] - 1 for content in said.values()) - 3 * episodes >= 1_200
    assert store.states.shape[1:] == (84, 84)
    assert set(np.unique(store.rewards)) == {0.0, 1.0}
    assert sorted(np.unique(store.actions)) == [0, 1, 2, 3]
    for number in range(2):
        parts = {part: unpacked(out, part, number) for part in ("observation", "action", "reward", "terminal")}
        assert {part: array.dtype.str for part, array in parts.items()} == {
            "observation": "|u1",
            "action": "<i4",
            "reward": "<f4",
            "terminal": "|u1",
        }
        begins = np.concatenate([[0], np.flatnonzero(parts["terminal"])[:-1] + 1])
        assert not parts["observation"][begins[:, None] + np.arange(3)].any()
        assert parts["observation"][begins + 3].any(axis=(1, 2)).all()
        assert parts["terminal"][-2:].tolist() == [1, 0]
        assert len(parts["terminal"]) <= 1_000


def unpacked(folder: Path, part: str, number: int) -> np.ndarray:
    return np.load(io.BytesIO(gzip.decompress((folder / f"$store$_{part}_ckpt.{number}.gz").read_bytes())))


def test_the_script_keeps_the_ball_in_play_much_longer_than_random_actions(tmp_path):
    scripted = collected(tmp_path / "track", *BREAKOUT, "--policy", "track", "--steps", "1_500")
    store = opened(tmp_path, "dqn_replay", "track")
    assert store.returns.mean() > 5  # random actions reach one or two
    assert set(np.unique(store.rewards)) == {0.0, 1.0}  # clipped: the upper bricks pay more
    assert len(contents(scripted)) == 4


def test_pictures_are_those_of_the_emulators_own_preprocessing():
    game = Game("ALE/Breakout-v5", sticky=0.0)
    theirs = AtariVectorEnv("breakout", 1, stack_num=1, noop_max=0, use_fire_reset=False, reward_clipping=False)
    ours, (expected, _) = game.reset(seed=0), theirs.reset(seed=0)
    for action in [1, *[0, 2, 2, 3] * 10]:
        assert np.abs(ours.astype(int) - expected[0, 0].astype(int)).max() <= 1
        ours, gained, _ = game.step(action)
        expected, reward, *_ = theirs.step(np.array([action]))
        assert gained == reward[0]
    assert ours.std() > 10
    theirs.close()
    game.close()


BAD = {
    "--rollout-steps is read with --policy sac only": (*RANDOM, "--steps", "100", "--rollout-steps", "5"),
    "--rows-per-file is read for Atari games only": (*RANDOM, "--steps", "100", "--rows-per-file", "5000"),
    "--env Hoper-v5 cannot be made": ("--env", "Hoper-v5", "--policy", "sac", "--steps", "3000"),
    "--env Hopper-v3 cannot be made": ("--env", "Hopper-v3", "--policy", "sac", "--steps", "3000"),
    "--env Hopper has no version": ("--env", "Hopper", "--policy", "sac", "--steps", "3000"),
    "--env ALE/Brakeout-v5 cannot be made": ("--env", "ALE/Brakeout-v5", "--policy", "random", "--steps", "3000"),
    "has 2 choices": ("--env", "CartPole-v1", "--policy", "sac", "--steps", "3000"),
    "takes actions between [-3.] and [3.]": ("--env", "InvertedPendulum-v5", "--policy", "sac", "--steps", "3000"),
    "--policy sac needs continuous actions": (*BREAKOUT, "--policy", "sac", "--steps", "3000"),
    "track plays Breakout only, not ALE/Pong-v5": ("--env", "ALE/Pong-v5", "--policy", "track", "--steps", "3000"),
    "track plays Breakout only, not Hopper-v5": ("--env", "Hopper-v5", "--policy", "track", "--steps", "3000"),
    "--steps 500 is too few to train; at least 2,000": ("--env", "Hopper-v5", "--policy", "sac", "--steps", "500"),
}


@pytest.mark.parametrize("said", BAD)
def test_a_bad_request_gets_one_line_and_leaves_nothing(tmp_path, said):
    result = collect(tmp_path / "out", *BAD[said])
    assert result.exit_code == USER_ERROR
    assert result.output.startswith("error: ")
    assert said in result.output
    assert result.output.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_used_is_refused(tmp_path):
    options = (*RANDOM, "--steps", "100")
    (tmp_path / "file").write_text("")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    for folder, said in (("file", "cannot be written"), ("mine", "holds thesis.txt and no manifest.json")):
        result = collect(tmp_path / folder, *options)
        assert (result.exit_code, said in result.output) == (USER_ERROR, True), result.output
    assert [file.name for file in (tmp_path / "mine").iterdir() if not file.name.startswith(".")] == ["thesis.txt"]


def test_a_folder_in_use_is_refused(tmp_path, monkeypatch):
    options = (*RANDOM, "--steps", "100")
    seen: list[str] = []

    def meanwhile(pieces, workers, told):
        seen.append(collect(tmp_path / "out", *options).output)
        raise click.Abort

    monkeypatch.setattr(sets, "make_all", meanwhile)
    collect(tmp_path / "out", *options)
    assert len(seen) == 1
    assert "another process is collecting there" in seen[0]


def test_without_the_library_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    result = collect(tmp_path / "out", *SAC, "--steps", "2_400")
    assert (result.exit_code, "pip install '.[collect]'" in result.output) == (USER_ERROR, True)


def test_the_benchmark_measures_every_kind(tmp_path):
    assert all(speed > 10 for speed in benchmark.measure("Hopper-v5", 100, tmp_path).values())
