"""Jobs on a Ray cluster: what is sent, what is refused, and what comes back from a real head."""

import contextlib
import dataclasses
import importlib.util
import json
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from cluster.ray.__main__ import main
from cluster.ray.job import Job, Refused, entrypoint, render, request, said_exit_code

with_client = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("aiohttp", "requests", "grpc")),
    reason="Ray's job client is not installed: pip install '.[cluster]' (it makes every start of Ray slower)",
)

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "cluster" / "ray"
HEAD = "http://127.0.0.1:8265"
SWEEP = ("scaling", "run", "sweeps/a b.yaml", "--root", "s3://bucket/runs?scheme=http&region=x")


def make(**changes) -> Job:
    return Job(**{"address": HEAD, "command": SWEEP, "name": "scaling-1", **changes})


def test_render_shows_what_is_sent_and_quotes_the_command():
    told = json.loads(render(make(env=(("WANDB_MODE", "offline"),), grace=7)))
    assert told["address"] == HEAD
    assert told["submission_id"] == "scaling-1"
    assert shlex.join(SWEEP) in told["entrypoint"]
    assert told["runtime_env"] == {
        "env_vars": {"SCALING_ADDRESS": "auto", "RAY_JOB_STOP_WAIT_TIME_S": "7", "WANDB_MODE": "offline"}
    }


def test_only_a_folder_that_was_named_is_uploaded(tmp_path):
    assert "working_dir" not in request(make())["runtime_env"]
    assert request(make(working_dir=str(tmp_path)))["runtime_env"]["working_dir"] == str(tmp_path)


def test_two_jobs_have_two_names():
    assert Job(address=HEAD, command=SWEEP).name != Job(address=HEAD, command=SWEEP).name


@pytest.mark.parametrize("code", [0, 1, 2, 75])
def test_the_shell_ends_as_the_command_and_its_last_line_tells(code):
    job = make(command=(sys.executable, "-c", f"raise SystemExit({code})"))
    done = subprocess.run(entrypoint(job), shell=True, capture_output=True, text=True)
    assert done.returncode == code
    assert said_exit_code(job, done.stdout) == code


def test_a_signal_to_shell_and_command_lets_the_command_tell_its_exit_code():
    code = (
        "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(75)); print('up', flush=True); time.sleep(60)"
    )
    job = make(command=(sys.executable, "-c", code))
    shell = subprocess.Popen(entrypoint(job), shell=True, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert shell.stdout.readline() == "up\n"
    os.killpg(shell.pid, signal.SIGTERM)
    said, _ = shell.communicate(timeout=30)
    assert said_exit_code(job, said) == 75
    assert shell.returncode == 75


def test_an_exit_code_is_read_only_where_the_job_itself_tells_it():
    job = make()
    assert said_exit_code(job, f"Running {entrypoint(job)}\n") is None
    assert said_exit_code(job, "scaling-2: exit code 3\n") is None
    assert said_exit_code(job, "scaling-1: exit code 3\nno newline here:scaling-1: exit code 75\n") == 75


def test_a_job_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make().name = "other"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"address": "127.0.0.1:8265"}, "is no URL of a dashboard; write http://HOST:8265"),
        ({"address": "auto"}, "is no URL"),
        ({"address": "http://host:seven"}, "is no URL"),
        ({"address": "http://"}, "is no URL"),
        ({"command": ()}, "no command; write it after --"),
        ({"command": ("scaling", "run", "x.yaml")}, "no --root: the folder in which a job runs is deleted"),
        ({"command": ("scaling", "run", "x.yaml", "--root", "runs")}, "--root runs: the folder"),
        ({"command": ("/opt/bin/scaling", "run", "x.yaml", "--root=runs")}, "--root runs: the folder"),
        ({"working_dir": "/no/such"}, "--working-dir /no/such: no such folder"),
        ({"env": (("1A", "x"),)}, "'1A' is no name of a variable"),
        ({"grace": 0}, "--grace must be at least one second"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_sent(changes, said):
    with pytest.raises(Refused, match=said):
        make(**changes)


@pytest.mark.parametrize("root", ["/shared/runs", "s3://bucket/runs", "gs://bucket"])
def test_roots_that_outlive_the_job_are_taken(root):
    assert make(command=("scaling", "run", "x.yaml", "--root", root)).command[-1] == root
    assert make(command=("scaling", "run", "x.yaml", f"--root={root}")).command[-1].endswith(root)


def refused(capsys, *arguments: str) -> str:
    assert main(list(arguments)) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("error: ")
    assert told.err.count("\n") == 1
    return told.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "submit"),
        (["submit"], "--address"),
        (["submit", "--address", HEAD], "no command"),
        (["submit", "--address", HEAD, "--"], "no command"),
        (["submit", "--address", HEAD, "--env", "A", "--", "true"], "write --env NAME=VALUE"),
        (["submit", "--address", HEAD, "--grace", "x", "--", "true"], "--grace"),
        (["submit", "--address", HEAD, "--adress", "x", "--", "true"], "--adress"),
        (["submit", "--address", HEAD, "true"], "true"),
        (["submit", "--address", HEAD, "--working-dir", "/no/such", "--", "true"], "no such folder"),
    ],
)
def test_a_wrong_command_line_is_one_line(capsys, arguments, said):
    assert said in refused(capsys, *arguments)


def test_a_dry_run_prints_the_request_and_needs_no_head(capsys):
    assert main(["submit", "--address", HEAD, "--env", "A=b=c", "--dry-run", "--", *SWEEP]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["runtime_env"]["env_vars"]["A"] == "b=c"
    assert told["entrypoint"].count(shlex.join(SWEEP)) == 1


def test_a_missing_package_is_named(capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "aiohttp" else find(name))
    said = refused(capsys, "submit", "--address", HEAD, "--", "true")
    assert said == "error: no package aiohttp here; pip install 'ray[default]'\n"


@contextlib.contextmanager
def listener(answer: bytes | None) -> Iterator[str]:
    """The URL of a port that gives one answer, or none."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            with contextlib.suppress(OSError):
                caller, _ = server.accept()
                with caller:
                    caller.recv(4096)
                    if answer is None:
                        caller.recv(4096)
                    else:
                        caller.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        thread.join(30)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@with_client
def test_a_dead_address_is_named(capsys):
    address = f"http://127.0.0.1:{free_port()}"
    assert f"nothing answers at {address}" in refused(capsys, "submit", "--address", address, "--", "true")


@with_client
def test_an_address_that_takes_calls_and_says_nothing_is_given_up(capsys, monkeypatch):
    from cluster.ray import submit

    monkeypatch.setattr(submit, "ANSWERS_WITHIN", 0.5)
    with listener(None) as address:
        assert "nothing answers" in refused(capsys, "submit", "--address", address, "--", "true")


@with_client
@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.0 404 Not Found\r\n\r\n",
        b"HTTP/1.0 200 OK\r\n\r\n<html>",
        b"HTTP/1.0 200 OK\r\n\r\n{}",
        b"\x00\x00\x18\x04 gRPC",
    ],
)
def test_another_server_than_rays_is_named(capsys, answer):
    with listener(answer) as address:
        said = refused(capsys, "submit", "--address", address, "--", "true")
    assert "is not a dashboard of Ray" in said


# -- a real head -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Head:
    address: str
    env: dict[str, str]

    def submit(self, *arguments: str, **env: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "cluster.ray", "submit", "--address", self.address, *arguments],
            cwd=ROOT,
            env={**self.env, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        with self.submit(*arguments, **env) as submitter:
            out, err = submitter.communicate(timeout=200)
        assert "Traceback" not in err
        return subprocess.CompletedProcess(submitter.args, submitter.returncode, out, err)


@pytest.fixture(scope="module")
def head(tmp_path_factory) -> Iterator[Head]:
    """A head with a dashboard that wants a token, on ports of its own."""
    folder = tmp_path_factory.mktemp("head")
    (folder / "token").write_text(secrets.token_hex(32))
    clean = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    env = {**clean, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token"), "HOME": str(folder)}
    port = free_port()
    # Ray's sockets want short names, and its other services ports that no other Ray took
    temporary = Path("/tmp") / f"ray-{secrets.token_hex(4)}"
    options = f"--head --block --port={free_port()} --dashboard-port={port} --num-cpus=1 --disable-usage-stats"
    options += f" --dashboard-host=127.0.0.1 --temp-dir={temporary} --ray-client-server-port={free_port()}"
    options += f" --dashboard-agent-listen-port={free_port()} --dashboard-agent-grpc-port={free_port()}"
    with (folder / "log").open("w") as log:
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", *options.split()]
        started = subprocess.Popen(ray, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        one = Head(f"http://127.0.0.1:{port}", env)
        deadline = time.monotonic() + 120
        while "--block" not in (folder / "log").read_text() or not answers(port):
            assert started.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.2)
        yield one
    finally:
        end(started)
        shutil.rmtree(temporary, ignore_errors=True)


def answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def end(started: subprocess.Popen) -> None:
    """End a process and all that it started."""
    family = [*psutil.Process(started.pid).children(recursive=True)]
    started.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        started.wait(30)
    for one in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    started.kill()
    started.wait()


DRIVER = """
import os, signal, sys, time

def save(number, frame):
    time.sleep(5)  # longer than Ray waits unless told
    print("saved", flush=True)
    sys.exit(75)

signal.signal(signal.SIGTERM, save)
print("up at", os.environ["SCALING_ADDRESS"], os.environ.get("OWN"), flush=True)
if sys.argv[1] == "wait":
    time.sleep(100)
sys.exit(int(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("driver")
    (folder / "driver.py").write_text(DRIVER)
    return str(folder)


@with_client
@pytest.mark.parametrize("code", [0, 1, 2, 75])
def test_the_exit_code_of_the_driver_comes_through(head, driver, code):
    done = head.run("--working-dir", driver, "--env", "OWN=a b", "--", sys.executable, "driver.py", str(code))
    assert done.returncode == code, done.stderr
    assert "up at auto a b\n" in done.stdout


@with_client
def test_an_address_in_the_environment_does_not_win(head):
    done = head.run("--", "echo", "here I am", RAY_ADDRESS="127.0.0.1:1", RAY_API_SERVER_ADDRESS="http://127.0.0.1:1")
    assert done.returncode == 0, done.stderr
    assert "here I am\n" in done.stdout


@with_client
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_the_driver_which_saves_and_tells_its_exit_code(head, driver, number):
    with head.submit("--working-dir", driver, "--", sys.executable, "driver.py", "wait") as submitter:
        while "up at" not in submitter.stdout.readline():
            assert submitter.poll() is None
        submitter.send_signal(number)
        out, err = submitter.communicate(timeout=60)
    assert "saved\n" in out
    assert "stopping scaling-" in err
    assert submitter.returncode == 75, err


@with_client
def test_a_second_signal_leaves_the_job(head, driver):
    with head.submit("--working-dir", driver, "--", sys.executable, "driver.py", "wait") as submitter:
        while "up at" not in submitter.stdout.readline():
            assert submitter.poll() is None
        submitter.send_signal(signal.SIGINT)
        while "stopping" not in submitter.stderr.readline():
            assert submitter.poll() is None
        submitter.send_signal(signal.SIGINT)
        out, err = submitter.communicate(timeout=60)
    assert submitter.returncode == 130
    assert "saved" not in out
    assert "while it stops" in err


@with_client
def test_a_driver_that_does_not_save_in_time_counts_as_interrupted(head, driver):
    with head.submit("--working-dir", driver, "--grace", "1", "--", sys.executable, "driver.py", "wait") as submitter:
        while "up at" not in submitter.stdout.readline():
            assert submitter.poll() is None
        submitter.send_signal(signal.SIGINT)
        out, err = submitter.communicate(timeout=60)
    assert submitter.returncode == 75
    assert "saved" not in out
    assert "did not live to say" in err


@with_client
@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"RAY_AUTH_MODE": "disabled"}, "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH"),
        ({"RAY_AUTH_TOKEN": "wrong"}, "the token is not the cluster's"),
        ({"RAY_AUTH_TOKEN_PATH": "/no/such"}, "/no/such"),
    ],
)
def test_a_wrong_token_is_one_line(head, env, said):
    done = head.run("--", "true", **env)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


# -- files for ray up and KubeRay --------------------------------------------------------------------------------------


def test_the_cluster_file_is_one_that_ray_up_takes():
    from ray.autoscaler._private.util import prepare_config, validate_config

    told = prepare_config(yaml.safe_load((FOLDER / "cluster.yaml").read_text()))
    validate_config(told)
    assert told["max_workers"] == 2
    told["no_such_field"] = 1
    with pytest.raises(Exception, match="no_such_field"):
        validate_config(told)


@pytest.mark.parametrize("group", ["head", "worker"])
def test_the_cluster_file_starts_ray_with_options_that_it_knows_and_a_token(group):
    from ray.scripts.scripts import start

    told = yaml.safe_load((FOLDER / "cluster.yaml").read_text())
    *_, line = told[f"{group}_start_ray_commands"]
    before, _, options = line.partition(" ray start ")
    found = start.make_context("start", shlex.split(options)).params
    assert "RAY_AUTH_MODE=token" in before
    assert found["head"] == (group == "head")
    assert found["dashboard_host"] in (None, "127.0.0.1", "localhost")
    assert "~/.ray/auth_token" in told["file_mounts"]


def test_the_commands_of_the_cluster_file_are_shell():
    told = yaml.safe_load((FOLDER / "cluster.yaml").read_text())
    lines = [line for name, lines in told.items() if name.endswith("commands") for line in lines]
    assert len(lines) == 7
    for line in lines:
        subprocess.run(["bash", "-n", "-c", line], check=True)


def test_the_manifest_runs_a_sweep_on_its_workers_and_cleans_up():
    told = yaml.safe_load((FOLDER / "rayjob.yaml").read_text())
    assert (told["apiVersion"], told["kind"]) == ("ray.io/v1", "RayJob")
    spec = told["spec"]
    command = tuple(shlex.split(spec["entrypoint"]))
    assert Job(address=HEAD, command=command).command[:2] == ("scaling", "run")
    assert command[command.index("--address") + 1] == "auto"
    assert spec["backoffLimit"] > 0
    assert spec["shutdownAfterJobFinishes"] is True
    assert int(yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"]) > 3
    cluster = spec["rayClusterSpec"]
    assert f"ray=={cluster['rayVersion']}" in (ROOT / "constraints.txt").read_text().splitlines()
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_the_manifest_holds_no_secret_and_one_image():
    cluster = yaml.safe_load((FOLDER / "rayjob.yaml").read_text())["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    containers = [c for group in groups for c in group["template"]["spec"]["containers"]]
    assert len({c["image"] for c in containers}) == 1
    for container in containers:
        assert "env" not in container
        assert all(set(source) == {"secretRef"} for source in container["envFrom"])
        assert container["resources"]["limits"] == container["resources"]["requests"]
