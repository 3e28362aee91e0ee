"""Hub ids: which files are asked for, and what happens without a network."""

import huggingface_hub as hub
import pytest

from janus_jax.errors import UserError
from janus_jax.weights.hub import is_hub_id, local_directory


class Api:
    files = ()

    def list_repo_files(self, name):
        if not self.files:
            raise OSError("the network\nis down")
        return list(self.files)


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """Sets the files of the repository; collects what is downloaded."""
    asked = []

    def download(name, allow_patterns):
        asked.append((name, set(allow_patterns)))
        return str(tmp_path)

    monkeypatch.setattr(hub, "HfApi", Api)
    monkeypatch.setattr(hub, "snapshot_download", download)
    return lambda *files: (monkeypatch.setattr(Api, "files", files), asked)[1]


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        (("config.json", "pytorch_model.bin", "README.md"), "*.bin"),
        (("config.json", "pytorch_model.bin", "model.safetensors"), "*.safetensors"),
    ],
)
def test_only_what_is_needed_is_downloaded(fake, tmp_path, files, kind):
    asked = fake(*files)
    assert local_directory("deepseek-ai/Janus-Pro-1B") == tmp_path
    assert asked == [("deepseek-ai/Janus-Pro-1B", {"*.json", "*.jinja", kind})]


def test_a_directory_is_itself(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert not is_hub_id("a/b") and str(local_directory("a/b")) == "a/b"
    assert not is_hub_id("a/b/c") and not is_hub_id("./b") and not is_hub_id("b")
    assert is_hub_id("deepseek-ai/Janus-Pro-7B")


def test_no_network_is_one_line(fake):
    fake()
    with pytest.raises(UserError, match="could not be downloaded: the network is down"):
        local_directory("deepseek-ai/Janus-Pro-1B")
