"""What a run is: frozen values that hold everything able to change its result, and nothing else."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, Literal

SPEC_VERSION = 3
"""Raised when the meaning of a field changes, so that old rows are not taken for new ones."""


def _refuse(bad: bool, message: str) -> None:
    if bad:
        raise ValueError(message)


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Which network is trained.

    A kind reads some of the fields and ignores the others; ignored ones do not enter a run's identity, and a sweep that
    sets one which none of its kinds reads is refused.
    """

    kind: str = "mambadm"
    """File name under ``scaling/models/``."""
    width: int = 128
    """Residual width; of a perceptron, units per hidden layer."""
    depth: int = 3
    """Number of layers."""
    context: int = 20
    """Timesteps per window; each is three tokens."""
    dropout: float = 0.1
    max_timestep: int = 1000
    """Rows of the timestep embedding: the longest episode that can be trained on; a longer rollout shares the last."""

    encoder: Literal["linear", "conv"] = "linear"
    """How states are embedded: vectors by a linear layer, pictures by the Atari codes' three convolutions."""
    frames: int = 4
    """Pictures stacked into one state."""
    stem: Literal["gym", "atari"] = "gym"
    """Whose token conventions: the Gym code's (timestep embedding, LayerNorm) or the Atari code's (tanh, positions)."""
    positions: bool = True
    """Whether tokens are told when they happened."""
    init: Literal["torch", "gpt2"] = "torch"
    """Of linear layers in the blocks: PyTorch's, or N(0, 0.02^2) with zero biases as in the public codes."""
    ffn: bool = True
    """Whether each layer ends in a feed-forward network."""

    heads: int = 1
    """Attention heads."""
    activation: Literal["relu", "gelu"] = "relu"
    """Of the Transformer's feed-forward network: ReLU in the Gym code, GELU in the Atari code."""

    d_state: int = 16
    """State size per channel of the selective scan."""
    d_conv: int = 4
    """Taps of the causal depthwise convolution."""
    expand: int = 2
    """Inner channels per residual channel of a Mamba block."""
    dt_init: Literal["log_uniform", "zero_bias"] = "log_uniform"
    """Initial step sizes: log-uniform in [dt_min, dt_max], or the public Decision Mamba's zeroed bias: 0.69 for all."""
    dt_min: float = 1.0e-3
    dt_max: float = 1.0e-1

    branches: Literal["both", "global", "local", "two_global", "two_local", "wide_global", "wide_local"] = "both"
    """Of a GLoMa layer. The last four are controls with the parameters of ``both``: two blocks of one kind, or a single
    one in a network widened until its layers have as many."""
    subsequence: int = 4
    """Timesteps per sub-sequence of the local branch; the last one is shorter when it does not divide the context.

    CHOICE: the paper is said to call it a hyper-parameter, and no value was found; GLAM, a relative, uses this one.
    """
    overlap: int = 0
    """Timesteps that neighbouring sub-sequences share."""
    local_weights: Literal["shared", "per_window"] = "shared"
    """One local Mamba for all sub-sequences, or one for each."""
    fusion: Literal["sum", "learned", "gate"] = "sum"
    """How branches are added: with fixed weights, one learned weight per layer, or a gate per token and channel."""
    ratio: float = 1.0
    """Weight of the global branch over that of the local one, in a sum; the two weights add up to two."""
    local_d_state: int | None = None
    """The ``local_`` fields take the place of their namesakes in the local branch; left out, both branches agree."""
    local_d_conv: int | None = None
    local_expand: int | None = None
    local_dt_init: Literal["log_uniform", "zero_bias"] | None = None
    local_dt_min: float | None = None
    local_dt_max: float | None = None

    conditioned: bool = True
    """Whether behaviour cloning sees the return-to-go."""

    def __post_init__(self) -> None:
        counts = ("width", "depth", "context", "max_timestep", "frames", "heads", "d_state", "d_conv", "expand")
        for name in (*counts, "subsequence", "local_d_state", "local_d_conv", "local_expand"):
            value = getattr(self, name)
            _refuse(value is not None and value < 1, f"model.{name} must be at least 1: {value}")
        _refuse(not 0 <= self.dropout < 1, f"model.dropout must lie in [0, 1): {self.dropout}")
        _refuse(self.overlap < 0, f"model.overlap must not be negative: {self.overlap}")
        _refuse(self.ratio <= 0, f"model.ratio must be positive: {self.ratio}")
        for prefix in ("", "local_"):
            own = getattr(self, f"{prefix}dt_min"), getattr(self, f"{prefix}dt_max")
            low, high = (b if a is None else a for a, b in zip(own, (self.dt_min, self.dt_max), strict=True))
            _refuse(
                not 0 < low <= high,
                f"model.{prefix}dt_min and {prefix}dt_max must satisfy 0 < minimum <= maximum: {low:g}, {high:g}",
            )


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """Which transitions the run may see."""

    kind: str = "d4rl"
    """File name under ``scaling/datasets/``."""
    path: str = "embedded:hopper-mini-v5"
    """A file, relative to the sweep's own folder, or ``embedded:NAME`` for a dataset inside the package.

    It does not enter the identity of a run, and neither do ``kind``, ``parts`` and ``step_limit``: the content of the
    dataset does.
    """
    parts: tuple[str, ...] = ()
    """Mixtures: the paths of the datasets that are mixed."""
    step_limit: int | None = None
    """D4RL files without ``timeouts``: steps after which an episode was cut; left out, the environment's limit."""
    fraction: float = 1.0
    """Share of the training episodes kept. For one ``draw``, smaller subsets nest in larger ones."""
    transitions: int | None = None
    """Instead of a fraction: as many whole episodes as come closest to so many transitions."""
    selection: Literal["random", "top_return", "low_return", "per_policy", "per_time"] = "random"
    """In which order episodes enter a subset: by chance; best or worst return first; one policy after another, by
    chance; as they were recorded."""
    weights: tuple[float, ...] = ()
    """Share of the subset's transitions from each policy, or part of a mixture, in the order of their numbers; a
    fraction is then one of the largest subset that has these shares."""
    draw: int = 0
    """Which random order of the training episodes the subset is taken from; it also chooses noise and segments."""
    segment: int | None = None
    """Of each training episode, only so many consecutive timesteps, at a random place, are kept; returns-to-go stay
    those of the whole episode."""
    action_noise: float = 0.0
    """Standard deviation of Gaussian noise on training actions, then clipped to [-1, 1]; of choices, the probability
    that one is replaced by a random one."""
    reward_noise: float = 0.0
    """Standard deviation of Gaussian noise on training rewards, hence on returns-to-go. Held-out episodes are clean.

    Noise of either kind takes a copy of all actions or rewards in the memory of each trial.
    """
    held_out: float = 0.1
    """Share of all episodes that no fraction and no draw ever sees."""
    rtg_scale: float = 1000.0
    """Returns-to-go are divided by this before they enter the network."""
    starts: Literal["any", "episode"] = "any"
    """Where training windows begin: at any transition, each equally likely, or where episodes do."""
    horizon: int = 30
    """Generated memory tasks: timesteps from what must be remembered to the action that needs it, both included."""
    episodes: int = 1000
    """Generated memory tasks: how many episodes."""
    seed: int = 0
    """Generated memory tasks: chooses their episodes."""

    def __post_init__(self) -> None:
        _refuse(not 0 < self.fraction <= 1, f"data.fraction must lie in (0, 1]: {self.fraction}")
        _refuse(not 0 < self.held_out < 1, f"data.held_out must lie in (0, 1): {self.held_out}")
        _refuse(
            self.transitions is not None and (self.transitions < 1 or self.fraction != 1.0),
            f"data.transitions must be at least 1 and stand without data.fraction: {self.transitions}, {self.fraction}",
        )
        _refuse(
            bool(self.weights) and (min(self.weights) < 0 or sum(self.weights) <= 0),
            f"data.weights must not be negative, nor all zero: {list(self.weights)}",
        )
        for name in ("segment", "step_limit"):
            value = getattr(self, name)
            _refuse(value is not None and value < 1, f"data.{name} must be at least 1: {value}")
        for name in ("action_noise", "reward_noise"):
            _refuse(getattr(self, name) < 0, f"data.{name} must not be negative: {getattr(self, name)}")
        _refuse(self.draw < 0, f"data.draw must not be negative: {self.draw}")
        _refuse(self.rtg_scale <= 0, f"data.rtg_scale must be positive: {self.rtg_scale}")
        _refuse(self.horizon < 1, f"data.horizon must be at least 1: {self.horizon}")
        _refuse(self.episodes < 2, f"data.episodes must be at least 2, one of them held out: {self.episodes}")
        _refuse(self.seed < 0, f"data.seed must not be negative: {self.seed}")

    @property
    def degrades(self) -> bool:
        """Whether training data are made worse than recorded."""
        return self.action_noise > 0 or self.reward_noise > 0


@dataclass(frozen=True, kw_only=True)
class TrainSpec:
    """How the network is trained."""

    budget: Literal["updates", "epochs", "exposures", "flops", "convergence"] = "updates"
    """What ``amount`` counts.

    ``updates`` keeps the number of optimiser steps equal for every subset, so that data and training length are not
    confounded. In one of the ``epochs`` every possible start of a window is drawn once on average, as in the Atari
    code of the Decision Transformer; one of the ``exposures`` shows every transition once on average. Of both, more
    data then means more updates. ``flops`` gives every model the same training compute, so larger ones take fewer
    updates. ``convergence`` takes at most ``amount`` updates and stops when the held-out loss no longer falls.
    """
    amount: float = 10000.0
    patience: int = 3
    """Convergence: points of the curve without a new lowest held-out loss after which training stops."""
    batch: int = 64
    """Windows per update, over all processes together."""
    learning_rate: float = 1.0e-3
    base_width: int | None = None
    """Width for which ``learning_rate`` holds; other widths take it times base_width / width, as maximal update
    parametrisation does for hidden weights under Adam (Yang et al. 2021, Table 3). Left out, all widths take the same.
    """
    warmup: float = 0.1
    """Share of the updates over which the learning rate rises linearly."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Of the learning rate after the rise; the cosine ends at a tenth."""
    beta2: float = 0.999
    """AdamW's decay of squared gradients."""
    weight_decay: float = 1.0e-4
    """Decoupled decay; never applied to A_log, D, norms, biases and embeddings."""
    clip: float = 0.25
    """Largest gradient norm."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of matrix products; convolution and scan stay in single precision, on a CPU the whole of a Mamba block."""
    evaluations: int = 10
    """Points on the run's curve of held-out loss, evenly spaced; the last one is the end of training."""

    def __post_init__(self) -> None:
        _refuse(self.amount <= 0, f"train.amount must be positive: {self.amount}")
        _refuse(
            self.budget in ("updates", "convergence") and self.amount != int(self.amount),
            f"train.amount must be a whole number of updates: {self.amount}",
        )
        for name in ("batch", "evaluations", "patience", "base_width"):
            value = getattr(self, name)
            _refuse(value is not None and value < 1, f"train.{name} must be at least 1: {value}")
        for name in ("learning_rate", "clip"):
            _refuse(getattr(self, name) <= 0, f"train.{name} must be positive: {getattr(self, name)}")
        _refuse(not 0 <= self.warmup <= 1, f"train.warmup must lie in [0, 1]: {self.warmup}")
        _refuse(not 0 < self.beta2 < 1, f"train.beta2 must lie in (0, 1): {self.beta2}")
        _refuse(self.weight_decay < 0, f"train.weight_decay must not be negative: {self.weight_decay}")


@dataclass(frozen=True, kw_only=True)
class EvaluateSpec:
    """How the trained network is rolled out."""

    env: str | None = None
    """Gymnasium id, for example ``Hopper-v5`` or ``ALE/Breakout-v5``, or ``own`` for the task that generated the data;
    without one there are no rollouts."""
    rollout: Literal["window", "recurrent"] = "window"
    """What the network sees: the last ``context`` steps, as in training, or, of Mamba models, all steps since the
    episode began, through their recurrent state."""
    episodes: int = 10
    """For each target."""
    targets: tuple[float, ...] = ()
    """Returns asked for, in the environment's own units; needed when ``env`` is given. The score in a run's row is that
    of the first; the table of episodes has all."""
    actions: Literal["greedy", "sampled"] = "greedy"
    """Of choices: the likeliest, or one drawn from the predicted probabilities, as in the Atari codes."""
    rtg_decrement: Literal["raw", "clipped"] = "raw"
    """What a reward takes off the return-to-go: itself, as in the public codes, or clipped to [-1, 1], as Atari logs
    keep it."""
    sticky: float = 0.0
    """Atari: probability that the emulator repeats the last action instead (Machado et al. 2018 recommend 0.25)."""
    noops: int = 30
    """Atari: largest number of idle frames with which an episode begins."""
    max_steps: int = 27000
    """Steps after which an episode ends at the latest; Atari's 108,000 frames by default."""
    seed: int = 0
    """First of the episodes' reset seeds, the same for every run so that runs meet the same starts."""

    def __post_init__(self) -> None:
        _refuse(self.seed < 0, f"evaluate.seed must not be negative: {self.seed}")
        _refuse(self.seed + self.episodes >= 1 << 31, f"evaluate.seed must stay below 2^31: {self.seed}")
        _refuse(self.episodes < 1, f"evaluate.episodes must be at least 1: {self.episodes}")
        _refuse(
            self.env is not None and not self.targets,
            f"evaluate.targets must be given for rollouts in {self.env}: a return to ask for, or several",
        )
        _refuse(len(set(self.targets)) < len(self.targets), f"evaluate.targets lists one twice: {list(self.targets)}")
        _refuse(not 0 <= self.sticky < 1, f"evaluate.sticky must lie in [0, 1): {self.sticky}")
        _refuse(self.noops < 0, f"evaluate.noops must not be negative: {self.noops}")
        _refuse(self.max_steps < 1, f"evaluate.max_steps must be at least 1: {self.max_steps}")


PARTS: dict[str, type] = {"model": ModelSpec, "data": DataSpec, "train": TrainSpec, "evaluate": EvaluateSpec}
"""The parts of a run's spec, by name."""


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """One run."""

    model: ModelSpec = field(default_factory=ModelSpec)
    data: DataSpec = field(default_factory=DataSpec)
    train: TrainSpec = field(default_factory=TrainSpec)
    evaluate: EvaluateSpec = field(default_factory=EvaluateSpec)
    seed: int = 0
    """Initial weights, order of windows, dropout."""

    def __post_init__(self) -> None:
        _refuse(self.seed < 0, f"seed must not be negative: {self.seed}")


def to_dict(spec: RunSpec) -> dict[str, Any]:
    """The spec as plain nested values."""
    return dataclasses.asdict(spec)


def from_dict(values: dict[str, Any]) -> RunSpec:
    """The inverse of :func:`to_dict`."""
    return RunSpec(
        model=ModelSpec(**values["model"]),
        data=DataSpec(**_with_tuples(values["data"])),
        train=TrainSpec(**values["train"]),
        evaluate=EvaluateSpec(**_with_tuples(values["evaluate"])),
        seed=values["seed"],
    )


def upgraded(values: dict[str, Any]) -> dict[str, Any]:
    """A spec as plain values, of this version or of version 2, with all fields of this version."""
    part = dict(values["evaluate"])
    if "target_return" in part:
        target = part.pop("target_return")
        part["targets"] = [] if target is None else [target]
    filled = {**values, "evaluate": part}
    for name, kind in PARTS.items():
        filled[name] = {**json.loads(json.dumps(dataclasses.asdict(kind()))), **filled[name]}
    return filled


def _with_tuples(values: dict[str, Any]) -> dict[str, Any]:
    """Lists, which JSON makes of tuples, as tuples again."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def run_id(spec: RunSpec, digest: str) -> str:
    """Content hash of all that can change the run's result, sixteen hexadecimal digits.

    Args:
        spec: the run.
        digest: content digest of its dataset; it takes the place of what says where the dataset lies.

    """
    values = to_dict(spec)
    for name in ("kind", "parts", "step_limit"):
        del values["data"][name]
    values["data"]["path"] = digest
    values["spec_version"] = SPEC_VERSION
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class Space:
    """What a dataset imposes on the network."""

    state: int
    """Components of a state, or pixels along one side of a picture."""
    action: int
    """Components of an action, or the number of choices."""
    discrete: bool = False
    """Whether actions are choices from a list."""
    image: bool = False
    """Whether states are pictures."""
