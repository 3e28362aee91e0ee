"""Hub ids: which files are asked for, and what happens without a network."""

import huggingface_hub as hub
import pytest
from huggingface_hub import constants

from janus_jax.errors import UserError
from janus_jax.interop.conversion.hub import is_hub_id, local_directory


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


def test_a_revision_and_a_token_reach_the_hub(monkeypatch, tmp_path):
    asked = []

    class Hub:
        def list_repo_files(self, name, **options):
            asked.append(options)
            return ["config.json", "model.safetensors"]

    def download(name, allow_patterns, **options):
        asked.append(options)
        return str(tmp_path)

    monkeypatch.setattr(hub, "HfApi", Hub)
    monkeypatch.setattr(hub, "snapshot_download", download)
    local_directory("owner/Name", "v1", "secret")
    assert asked == [{"revision": "v1", "token": "secret"}] * 2


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


# The hub's cache, when the hub does not answer

COMMIT = "0123456789abcdef"


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """cached(commit, *files) puts a snapshot into the hub's cache, with links to blobs."""
    repository = tmp_path / "hub" / "models--owner--Name"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "HfApi", Api)

    def put(commit, *files, main=None):
        for file in files:
            blob = repository / "blobs" / f"{commit}-{file}"
            blob.parent.mkdir(parents=True, exist_ok=True)
            blob.write_text(INDEX)
            link = repository / "snapshots" / commit / file
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(f"../../blobs/{blob.name}")
        if main:
            (repository / "refs").mkdir(exist_ok=True)
            (repository / "refs" / "main").write_text(main)
        return repository / "snapshots" / commit

    return put


INDEX = '{"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}}'
WHOLE = ("config.json", "model.safetensors")
SHARDS = ("config.json", "model.safetensors.index.json", "model-1-of-2.safetensors")


@pytest.mark.parametrize(
    "files",
    [
        WHOLE,
        ("config.json", "pytorch_model.bin"),
        (*SHARDS, "model-2-of-2.safetensors"),
    ],
)
def test_what_was_downloaded_before_is_found_offline(cached, capsys, files):
    snapshot = cached(COMMIT, *files, main=COMMIT)
    assert local_directory("owner/Name") == snapshot
    assert capsys.readouterr().err == ""


def test_without_network_one_line_says_what_is_used(cached, capsys, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    snapshot = cached(COMMIT, *WHOLE, main=COMMIT)
    assert local_directory("owner/Name") == snapshot
    said = capsys.readouterr().err
    assert said.startswith("warning: the hub did not answer (the network is down); using ")
    assert str(snapshot) in said and said.count("\n") == 1


def test_of_several_snapshots_that_of_main_is_taken(cached, capsys):
    cached("aaaa", *WHOLE)
    cached("cccc", *WHOLE)
    snapshot = cached("bbbb", *WHOLE, main="bbbb")
    assert local_directory("owner/Name") == snapshot
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("main", [None, "gone", "part"])
def test_the_only_whole_snapshot_is_taken_and_named(cached, capsys, main):
    """Downloaded by its commit, or followed by an update that was cut short."""
    cached("part", "config.json")
    snapshot = cached(COMMIT, *WHOLE, main=main)
    assert local_directory("owner/Name") == snapshot
    assert f"{snapshot}" in capsys.readouterr().err


def test_several_whole_snapshots_without_main_are_for_the_user_to_choose(cached):
    cached("aaaa", *WHOLE)
    cached("bbbb", *WHOLE)
    with pytest.raises(UserError, match=r"does not say which is newest, give one of .*aaaa.*bbbb"):
        local_directory("owner/Name")


@pytest.mark.parametrize(
    ("files", "lacks"),
    [
        (("config.json",), "the weights"),
        (("config.json", "tokenizer.json"), "the weights"),
        (("model.safetensors",), "config.json"),
        (SHARDS, "model-2-of-2.safetensors"),
    ],
)
def test_a_part_is_no_model(cached, files, lacks):
    cached(COMMIT, *files, main=COMMIT)
    with pytest.raises(UserError, match=rf"OFFLINE is set; .* a part: \S+ lacks {lacks}$"):
        local_directory("owner/Name")


def test_links_to_files_that_are_gone_are_seen(cached):
    snapshot = cached(COMMIT, *WHOLE, main=COMMIT)
    (snapshot / "model.safetensors").resolve().unlink()
    with pytest.raises(UserError, match="lacks the weights"):
        local_directory("owner/Name")
    (snapshot / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(UserError, match=r"lacks a readable model\.safetensors\.index\.json"):
        local_directory("owner/Name")


def test_nothing_in_the_cache_is_one_line(cached):
    with pytest.raises(UserError, match=r"could not be downloaded: HF_HUB_OFFLINE is set$"):
        local_directory("owner/Name")


def test_without_network_a_revision_is_only_its_own_snapshot(cached, capsys):
    cached("aaaa", *WHOLE, main="aaaa")
    other = cached("bbbb", *WHOLE)
    assert local_directory("owner/Name", "bbbb") == other
    assert capsys.readouterr().err == ""
    (other.parent.parent / "refs" / "v1").write_text("bbbb")
    assert local_directory("owner/Name", "v1") == other
    with pytest.raises(UserError, match="could not be downloaded"):
        local_directory("owner/Name", "v2")
