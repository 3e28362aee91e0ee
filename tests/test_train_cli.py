"""train.py with bad input: one line on stderr, exit code 2, nothing written."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from janus_jax.cli import config_flag
from janus_jax.errors import UserError

pytestmark = pytest.mark.subprocess

ROOT = Path(__file__).resolve().parent.parent


def run(*args: str) -> subprocess.CompletedProcess:
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "train.py", *args]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--config", "configs/janus_tinny.py"], "Did you mean 'configs/janus_tiny.py'?"),
        (["--config=configs/janus_tiny.py:smok"], "Did you mean 'smoke'?"),
        (["--config", "janus_tinny"], "Did you mean 'janus_tiny'?"),
        (["--config=janus_tiny:smok"], "Did you mean 'smoke'?"),
        (["--config", "janus_pro_7b"], "--config.tokenizer"),
        (["--config="], "no config file"),
        (["--config"], "Missing value for flag --config"),
        (["--workdirr=x"], "workdirr"),
        (["--config.stages.stage2.stepz=3"], "Did you mean 'steps'?"),
        (
            ["--config=finetune:lora", "--config.stages.finetune.options.lora.dropout=0.1"],
            "the config has no config.stages.finetune.options.lora.dropout",
        ),
        (["--config=finetune:lora", "--config", "finetune:full"], "--config is given twice"),
        (["--config.seed=abc"], "config.seed"),
        (["--config.world.grid=3"], "config.world.grid has moved to"),
        (["--config.eval.prompts=3"], "config.eval.prompts has moved to"),
        (["--config.stages.stage2.scenes.describe=0.5"], "scenes.describe has moved to"),
        (["--config.stages.stage2.sources.und.options.descrbe=0.5"], "descrbe"),
        (["--config.model.preset=janus-tinyy"], "Did you mean 'janus-tiny'?"),
        (["--config", "configs/janus_pro_7b.py"], "--config.tokenizer"),
        (["--config", "configs/janus_tiny.py:stage2"], "stage1, which has not finished"),
        (["--config.mesh.fsdp=7"], "7"),
        (["--config.eval.benchmarks[0].promptz=3"], "config.eval.benchmarks[0].promptz"),
        (["--config.eval.benchmarks[7].prompts=3"], "config.eval.benchmarks[7].prompts"),
        (["stray"], "'stray'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(args, said, tmp_path):
    workdir = tmp_path / "run"
    done = run("--workdir", str(workdir), *args)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not workdir.exists()


MINE = """from janus_jax.configs.janus_tiny import get_config as tiny
def get_config(arg=""):
    config = tiny(arg)
    {}
    return config
"""


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("config.world.grid = 4", "mine.py, line 4: config.world.grid has moved to"),
        ("config.eval.update(prompts=4)", "config.eval.prompts has moved to"),
        ("config.stages.stage1.scenes.tasks.mixed = 2.0", "options.kinds.mixed"),
        ("config.stages.stage1.scenes.update(describe=1)", "mine.py, line 4: config.stages.stage1"),
        ("import not_there", "mine.py, line 4: ModuleNotFoundError: No module named 'not_there'"),
        ("config. = 4", "mine.py, line 4: invalid syntax"),
        ("config.seed = 1 / 0", "mine.py, line 4: ZeroDivisionError: division by zero"),
        ("config.seed = int('x')", "mine.py, line 4: ValueError: invalid literal"),
        ("config.nonsense = 4", "config has no field 'nonsense'"),
    ],
)
def test_a_slip_in_a_config_file_is_one_line(line, said, tmp_path):
    file, workdir = tmp_path / "mine.py", tmp_path / "run"
    file.write_text(MINE.format(line))
    done = run("--config", f"{file}:smoke", "--workdir", str(workdir))
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not workdir.exists()


def test_a_directory_with_something_else_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    done = run("--workdir", str(tmp_path))
    assert done.returncode == 2
    assert "not empty" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_help_shows_a_working_example():
    done = run("--help")
    assert done.returncode == 0
    assert "python train.py --config configs/janus_tiny.py" in done.stdout
    assert "python train.py --config janus_tiny:smoke" in done.stdout
    assert (
        "Configs: finetune, janus_1b, janus_pro_1b, janus_pro_7b, janus_small, janus_tiny"
        in done.stdout
    )


def test_a_config_has_a_name_or_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    inside = Path(config_flag.BUILTIN, "janus_tiny.py")
    assert config_flag.config_file("janus_tiny:smoke") == f"{inside}:smoke"
    Path("mine.py").write_text("def get_config(arg): ...")
    assert config_flag.config_file("mine.py:a:b") == "mine.py:a:b"
    Path("janus_tiny").mkdir()  # such as a run
    assert config_flag.config_file("janus_tiny") == str(inside)
    for name in ("common", "__init__", "configs/janus_tiny.py"):  # not here, and no recipes
        with pytest.raises(UserError, match="no config file"):
            config_flag.config_file(name)


# What a command has imported by the time it prints its help, or what is wrong with its flags.
IMPORTED = """
import sys
from janus_jax.cli.{module} import command
sys.argv[0] = "{name}"
try:
    command()
except SystemExit as end:
    print("exit code", end.code)
heavy = "jax jaxlib flax optax orbax grain torch transformers matplotlib".split()
print("imported", [name for name in heavy if name in sys.modules])
"""


@pytest.mark.parametrize(
    ("module", "name", "flags", "code"),
    [
        ("train", "train.py", ["--help"], 0),
        ("train", "train.py", ["--workdirr=x"], 2),
        ("train", "train.py", ["--config", "janus_tinny"], 2),
        ("train", "train.py", ["--config.stages.stage2.stepz=3"], 2),
        ("sample", "sample.py", ["--help"], 0),
        ("sample", "sample.py", ["--num_imagess=2"], 2),
        ("convert", "convert_torch_weights.py", ["--help"], 0),
        ("convert", "convert_torch_weights.py", ["--srcc=x"], 2),
    ],
)
def test_help_and_a_typo_import_nothing_heavy(module, name, flags, code):
    command = [sys.executable, "-c", IMPORTED.format(module=module, name=name), *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-2:] == [f"exit code {code}", "imported []"], done.stderr


@pytest.mark.parametrize(
    ("module", "script", "command"),
    [
        ("train", "train.py", "janus-train"),
        ("sample", "sample.py", "janus-sample"),
        ("convert", "convert_torch_weights.py", "janus-convert"),
    ],
)
@pytest.mark.parametrize("flags", [["--help"], ["--no_such_flag=1"]])
def test_texts_name_the_command_that_was_typed(module, script, command, flags, monkeypatch, capsys):
    run = importlib.import_module(f"janus_jax.cli.{module}").command
    for typed, other in ((script, command), (f"/usr/bin/{command}", script)):
        monkeypatch.setattr(sys, "argv", [typed, *flags])
        with pytest.raises(SystemExit):
            run()
        shown = "".join(capsys.readouterr())
        assert Path(typed).name in shown and other not in shown
