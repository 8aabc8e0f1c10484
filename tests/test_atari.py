"""Atari: the replay log's traps, and networks that learn from real frames of the emulator."""

import dataclasses
import gzip
from pathlib import Path

import numpy as np
import pytest
from ale_py.vector_env import AtariVectorEnv

from scaling import train
from scaling.datasets import dqn_replay
from scaling.errors import UserError
from scaling.runs import open_store
from scaling.spec import DataSpec, EvaluateSpec, ModelSpec, RunSpec, TrainSpec
from scaling.store import Store
from scaling.windows import Windows

from conftest import build


def write(folder: Path, number: int, **arrays: np.ndarray) -> Path:
    folder.mkdir(exist_ok=True)
    for part, array in arrays.items():
        with gzip.open(file(folder, part, number), "wb") as packed:
            np.save(packed, array)
    return folder


def file(folder: Path, part: str, number: int = 0) -> Path:
    return folder / f"$store$_{part}_ckpt.{number}.gz"


def log(lengths: list[int], first: int = 1, black: bool = True) -> dict[str, np.ndarray]:
    """Episodes of these lengths, the last one unfinished; every pixel of a picture is its number, from ``first`` on."""
    frames, terminal = [], []
    number = first
    for episode, length in enumerate(lengths):
        padding = 3 if black or episode > 0 else 0
        frames += [0] * padding + list(range(number, number + length))
        terminal += [0] * (padding + length - 1) + [int(episode < len(lengths) - 1)]
        number += length
    terminal[-1] = 1  # what the stale last row says does not count
    values = np.array(frames, np.uint8)
    return {
        "observation": np.broadcast_to(values[:, None, None], (len(values), 84, 84)).copy(),
        "action": (values % 4).astype(np.int32),
        "reward": ((values % 3 == 0) & (values > 0)).astype(np.float32),
        "terminal": np.array(terminal, np.uint8),
    }


def built(place: Path) -> Store:
    return dqn_replay.open(DataSpec(kind="dqn_replay", path=str(place)), place)


def test_only_whole_episodes_are_read_without_black_rows_and_the_stale_one(tmp_path):
    place = write(tmp_path / "logs", 0, **log([4, 2, 5]))
    write(place, 1, **log([3, 6, 2], first=12, black=False))  # its first episode began in another file
    store = dqn_replay.open(DataSpec(kind="dqn_replay", path="logs"), tmp_path)
    numbers = store.states[:, 0, 0]
    assert numbers.tolist() == [1, 2, 3, 4, 5, 6, *range(15, 21)]
    assert store.lengths.tolist() == [4, 2, 6]
    assert store.actions.tolist() == (numbers % 4).tolist()
    assert store.returns.tolist() == [1.0, 1.0, 2.0]
    assert store.about["rows_left_out"] == (3 + 3 + 3 + 5) + (3 + 3 + 3 + 2)
    assert store.space.image
    assert store.space.discrete


def test_black_pictures_of_a_game_are_kept_and_do_not_make_a_beginning(tmp_path):
    """Three black rows are padding, further ones were played; a file that begins with fewer begins amid an episode."""
    arrays = log([5, 6, 4, 2])
    arrays["observation"][[3, 4]] = 0  # the first two pictures of the first episode
    place = write(tmp_path / "logs", 0, **arrays)
    assert built(place).lengths.tolist() == [5, 6, 4]
    write(place, 0, **{part: array[1:] for part, array in log([5, 6, 4, 2]).items()})
    assert built(place).lengths.tolist() == [6, 4]


def test_reading_in_pieces_changes_nothing(tmp_path, monkeypatch):
    place = write(tmp_path / "logs", 0, **log([40, 20, 50, 30]))
    whole = built(place)
    monkeypatch.setattr(dqn_replay, "CHUNK", 7)
    pieces = build(place, dqn_replay.read, tmp_path / "other cache")
    assert pieces.digest == whole.digest
    np.testing.assert_array_equal(whole.rtg, pieces.rtg)


SPOILT = {
    "reward_ckpt.0.gz is missing; every checkpoint needs": lambda place: file(place, "reward").unlink(),
    r"has shape \(3,\); expected \(20,\)": lambda place: write(place, 0, action=np.zeros(3, np.int32)),
    "pictures of 84 x 84": lambda place: write(place, 0, observation=np.zeros((20, 8, 8), np.uint8)),
    "not a complete gzip of a .npy file": lambda place: file(place, "terminal").write_bytes(b"x"),
    "observation.*copy or download it again": lambda place: cut(file(place, "observation")),
    r"0 finished episode\(s\) in 0 rows; at least 2": lambda place: write(place, 0, terminal=np.zeros(20, np.uint8)),
    "observation.*CRC check failed": lambda place: flip(file(place, "observation"), -6),
    "action.*not a complete gzip": lambda place: flip(file(place, "action"), -6),
    "reward.*holds float32, or NaN": lambda place: write(place, 0, reward=np.full(20, np.nan, np.float32)),
    "action.*holds float64.*expected whole numbers": lambda place: write(place, 0, action=np.zeros(20)),
    "actions reach -1": lambda place: write(place, 0, action=np.where(np.arange(20) == 4, -1, 0)),
}


def flip(path: Path, place: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[place] ^= 0xFF
    path.write_bytes(bytes(raw))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("said", SPOILT)
def test_what_is_not_a_replay_log_is_refused(tmp_path, said):
    place = write(tmp_path / "logs", 0, **log([4, 2, 5]))
    SPOILT[said](place)
    with pytest.raises(UserError, match=said) as caught:
        dqn_replay.open(DataSpec(kind="dqn_replay", path="logs"), tmp_path)
    assert "\n" not in str(caught.value)


def test_a_folder_without_logs_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no .store._observation_ckpt.N.gz"):
        dqn_replay.open(DataSpec(kind="dqn_replay", path="."), tmp_path)


@pytest.fixture(scope="module")
def breakout(tmp_path_factory) -> Path:
    """The folder of a log of five short games of Breakout: real frames, a random player."""
    env = AtariVectorEnv(game="breakout", num_envs=1, noop_max=1, repeat_action_probability=0.0)
    generator = np.random.default_rng(0)
    rows: list[tuple] = []
    for episode in range(5):
        seen, _ = env.reset(seed=episode)
        rows += [(np.zeros((84, 84), np.uint8), 0, 0.0, 0)] * 3
        for step in range(25):
            action = generator.integers(0, 4, 1)
            picture = seen[0, -1].copy()
            seen, reward, *_ = env.step(action)
            rows.append((picture, action[0], np.sign(reward[0]), step == 24))
    env.close()
    types = {"observation": np.uint8, "action": np.int32, "reward": np.float32, "terminal": np.uint8}
    columns = zip(types.items(), zip(*rows, strict=True), strict=True)
    arrays = {part: np.array(values, kind) for (part, kind), values in columns}
    return write(tmp_path_factory.mktemp("breakout") / "logs", 0, **arrays).parent


def on_breakout(kind: str, **changes) -> RunSpec:
    model = {
        "width": 16,
        "depth": 1,
        "context": 4,
        "subsequence": 2,
        "encoder": "conv",
        "stem": "atari",
        "dropout": 0.0,
    }
    return RunSpec(
        model=ModelSpec(kind=kind, **{**model, **changes}),
        data=DataSpec(kind="dqn_replay", path="logs", rtg_scale=1.0, held_out=0.3),
        train=TrainSpec(amount=12.0, batch=4, learning_rate=2e-3, evaluations=2, schedule="cosine", beta2=0.95),
    )


@pytest.mark.parametrize("kind", ["mambadm", "decision_transformer", "dmamba", "bc"])
def test_every_model_trains_on_frames_of_breakout(kind, breakout):
    spec = on_breakout(kind)
    store = open_store(spec, breakout)
    assert store.lengths.tolist() == [25] * 4  # the fifth game ends in the stale row
    assert store.states.max() > 100
    row = train.train(spec, store).row
    assert row["status"] == "done"
    assert row["loss"] < 2 * np.log(4)


def test_a_window_of_frames_holds_no_copies(breakout):
    spec = on_breakout("bc", context=20)
    store = open_store(spec, breakout)
    windows = Windows(store, np.arange(4), spec)
    assert windows.gather(np.arange(8), windows.normaliser()).state.nbytes == 8 * 23 * 84 * 84
    assert isinstance(store.states, np.memmap)


def test_what_does_not_fit_pictures_is_refused_before_training(breakout):
    spec = on_breakout("bc")
    store = open_store(spec, breakout)
    played = dataclasses.replace(spec, evaluate=EvaluateSpec(env="Hopper-v5", targets=(90.0,)))
    with pytest.raises(UserError, match="Hopper-v5 does not show what the dataset does, pictures"):
        train.train(played, store)
    with pytest.raises(UserError, match=r"model.encoder linear takes vectors, .* 84 x 84 pixels: use conv"):
        train.train(on_breakout("bc", encoder="linear"), store)
