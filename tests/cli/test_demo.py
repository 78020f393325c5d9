"""`mcm demo` as a command: what it says when it cannot begin, its warnings, and a page that Ctrl-C ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import tiny_modelscope

import mcm as package
from mcm.cli import main

Fails = Callable[..., str]


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Fails:
    def run(*arguments: str) -> str:
        with pytest.raises(SystemExit) as left:
            main(["demo", *arguments])
        said = capsys.readouterr()
        assert left.value.code == 1
        assert said.err.count("\n") == 1
        return said.err

    return run


def test_without_gradio_it_names_the_command(fails: Fails, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert 'pip install "motion-consistency[demo]"' in fails()


def test_a_run_that_is_not_there(fails: Fails) -> None:
    pytest.importorskip("gradio")
    assert "--run no/such/run: no such folder" in fails("--run", "no/such/run")


def test_a_port_that_is_taken_and_an_address_of_others(fails: Fails) -> None:
    pytest.importorskip("gradio")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert "choose another --port" in fails("--port", str(taken.getsockname()[1]))
    assert "cannot listen on 192.0.2.1" in fails("--host", "192.0.2.1", "--port", "0")


def test_what_opens_the_page_to_others_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gradio")
    for arguments, words in (
        (["--host", "0.0.0.0"], "warning: --host 0.0.0.0 opens this page to the network"),
        (["--share"], "warning: --share makes this page public"),
        ([], ""),
    ):
        with pytest.raises(SystemExit):
            main(["demo", "no/such/model", "--port", "0", *arguments])  # which ends it before it listens
        said = capsys.readouterr().out
        assert words in said
        assert ("warning" in said) == bool(words)


def test_a_page_until_ctrl_c(tmp_path: Path) -> None:
    pytest.importorskip("gradio")
    import httpx

    tiny_modelscope(tmp_path / "teacher")
    environment = {**os.environ, "PYTHONPATH": str(Path(package.__file__).parents[1]), "TMPDIR": str(tmp_path)}
    environment |= dict.fromkeys(("http_proxy", "HTTP_PROXY"), "http://127.0.0.1:9")  # none is there, none is asked
    command = [sys.executable, "-m", "mcm", "demo", str(tmp_path / "teacher"), "--port", "0"]
    # The tests may run where the shell has Ctrl-C ignored, which a child would inherit.
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:  # fmt: skip
        assert process.stdout is not None
        said: list[str] = []
        for line in process.stdout:
            said.append(line)
            if line.startswith("open "):
                break
        assert said, process.communicate()[1]
        url = said[-1].split()[1]
        assert url.startswith("http://127.0.0.1:")
        assert httpx.get(url, trust_env=False, timeout=60).status_code == 200
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    assert not list(tmp_path.glob("mcm-demo-*"))  # what was uploaded and made is gone
