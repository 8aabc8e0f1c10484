"""Where a step's time goes: parts are told apart by name, floors are counted by hand, and the verb leaves nothing."""

import json
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from torch.profiler import DeviceType

from scaling import cli, step_profile
from scaling.step_profile import ATTENTION, CONVOLUTION, IDLE, KERNEL, OTHER, PARTS, PHASES, PRODUCTS, SCAN, SPAN

SWEEP = """
name: tiny
base:
  model: {width: 8, depth: 1, context: 4, subsequence: 2}
  data: {kind: tmaze, horizon: 4, episodes: 20, starts: episode, rtg_scale: 1.0}
  train: {amount: 5, batch: 3, evaluations: 1}
axes: {model.width: [8, 16]}
"""

STATE, CHOICES = 3, 3
"""Of that task."""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(SWEEP)
    return tmp_path


@pytest.fixture
def call(folder):
    threads = torch.get_num_threads()
    yield lambda *arguments: CliRunner().invoke(cli.main, ["profile", "tiny.yaml", "--seconds", "0.05", *arguments])
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("aten::mm", PRODUCTS),
        ("aten::addmm", PRODUCTS),
        ("aten::baddbmm", PRODUCTS),
        ("scaling::selective_scan_backward", SCAN),
        ("scaling::causal_conv", SCAN),
        ("scaling::layers_backward", KERNEL),
        ("scaling::dropout", OTHER),
        ("GeneratedBackwardFor_scaling_causal_conv_defaultBackward", SCAN),
        ("aten::_scaled_dot_product_flash_attention_for_cpu_backward", ATTENTION),
        ("aten::mkldnn_convolution", CONVOLUTION),
        ("aten::mul", OTHER),
        ("aten::gelu", OTHER),
    ],
)
def test_every_operation_belongs_to_a_part(name, part):
    assert step_profile.part_of(name) == part


def event(name, begin, end, own, caller=None):
    return SimpleNamespace(
        name=name,
        time_range=SimpleNamespace(start=begin, end=end),
        self_cpu_time_total=own,
        self_device_time_total=0.0,
        device_type=DeviceType.CPU,
        cpu_parent=caller,
    )


def test_time_goes_to_the_phase_in_which_an_operation_began_and_to_whoever_called_it():
    kernel = event("scaling::selective_scan", 30, 70, 20)
    events = [
        event("aten::mm", 5, 9, 4),  # before the first phase
        event(SPAN + "windows", 10, 20, 10),
        event(SPAN + "forward", 20, 120, 10),
        kernel,
        event("aten::copy_", 40, 50, 10, caller=kernel),
        event("aten::mm", 80, 100, 20),
        event(SPAN + "forward", 220, 320, 10),
        event("aten::gelu", 230, 330, 50),
    ]
    shares = step_profile.shares_of(events, on_gpu=False)
    assert set(shares) == set(PHASES)
    assert shares["windows"][IDLE] == 1.0
    found = {part: share for part, share in shares["forward"].items() if share}
    assert found == pytest.approx({SCAN: 0.15, PRODUCTS: 0.1, OTHER: 0.25, IDLE: 0.5})


def test_a_profile_is_consistent_and_its_floor_is_counted_by_hand(call, folder):
    done = call("--json", "-")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert "width 16" in told["label"]  # the dearer of the two
    d, inner, rank, tokens = 16, 32, 1, 12
    block = 2 * (d * 2 * inner + inner * (rank + 2 * 16) + rank * inner + inner * d)
    layer, ends = tokens * (2 * block + 16 * d**2), 2 * 4 * d * (1 + STATE + CHOICES)  # chosen actions are looked up
    assert told["product_flops"] == 3 * 3 * (layer + ends)
    assert told["floor"] == pytest.approx(told["product_flops"] / told["product_rate"])
    assert told["times_floor"] == pytest.approx(told["update"] / told["floor"])
    assert told["samples_per_second"] == pytest.approx(3 / told["update"])
    assert told["tokens_per_second"] == pytest.approx(3 * 12 / told["update"])
    for phase in PHASES:
        assert set(told["shares"][phase]) == set(PARTS)
        assert sum(told["shares"][phase].values()) == pytest.approx(1.0)
    assert told["shares"]["forward"][KERNEL] > 0
    assert told["shares"]["backward"][PRODUCTS] > 0
    assert told["shares"]["windows"][KERNEL] == told["shares"]["optimiser"][KERNEL] == 0
    assert told["threads"] == 1
    assert sorted(path.name for path in folder.iterdir()) == ["tiny.yaml"]


def test_a_run_is_chosen_by_how_its_run_id_begins(call, folder):
    names = [line.split()[0].strip(";") for line in call("--run", "nothing").output.split("there are: ")[1].split("; ")]
    assert len(names) == 2
    done = call("--run", names[0], "--threads", "2", "--json", "out.json")
    assert done.exit_code == 0, done.output
    told = json.loads((folder / "out.json").read_text())
    assert told["run_id"].startswith(names[0])
    assert told["threads"] == 2
    assert done.stdout.startswith(told["run_id"])
    for said in (
        "forward",
        "times its floor",
        "samples/s",
        f"kernel {told['kernel']}",
        "2 threads",
        "not seen: imports",
    ):
        assert said in done.stdout


def test_a_run_that_does_not_exist_is_an_error_that_lists_what_does(call):
    done = call("--run", "nothing")
    assert done.exit_code == 2
    assert done.stderr.startswith("error: no run begins with 'nothing'; there are: ")
    assert done.stderr.count(" mambadm width ") == 2
    assert done.stderr.count("\n") == 1
    assert call("--run", "").exit_code == 0  # as if it were not given


def test_a_network_without_room_is_an_error_without_a_traceback(call, folder):
    (folder / "tiny.yaml").write_text(SWEEP.replace("[8, 16]", "[8, 4000000]"))
    done = call()
    assert done.exit_code == 2
    assert done.stderr.startswith("error: memory does not suffice")
