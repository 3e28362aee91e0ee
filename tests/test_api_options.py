"""What the public methods say about options and values that they do not have, and the names of before."""

import copy
import importlib
import inspect
import pickle

import numpy as np
import pytest
from dummies_model import CONFIG, GUIDED, make_janus

from janus_jax.config import Policy
from janus_jax.errors import UserError
from janus_jax.inference import GenerationConfig, Janus

PICTURE = np.zeros((16, 16, 3), np.uint8)


@pytest.fixture(scope="module")
def janus():
    return make_janus(fields=GUIDED)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda j: j.encode_image(PICTURE, imag=1), r"encode_image has no option 'imag'\. Did you"),
        (lambda j: j.decode_codes([0], code=1), r"decode_codes has no option 'code'\. Did you"),
        (lambda j: j.decode_codes_arrays([0], code=1), "decode_codes_arrays has no option"),
        (lambda j: j.save("x", overwrite=True), "save has no option 'overwrite'"),
        (
            lambda j: j.conversation().ask("a", image=[PICTURE]),
            r"ask has no option 'image'\. Did you mean 'images'",
        ),
        (lambda j: j.conversations(2).ask(["a"] * 2, image=[]), "ask has no option 'image'"),
        (lambda j: j.conversation().add("a", "b", image=[]), "add has no option 'image'"),
        (lambda j: j.encode_image(None), "image must be a picture or a list of pictures, not None"),
        (lambda j: j.decode_codes([[1], [2, 3]]), "codes must be .* different lengths"),
        (lambda j: j.score_images("a cat", [[1], [2, 3]]), "codes must be .* different lengths"),
        (lambda j: j.save(None), "path must be a path, not NoneType"),
        (lambda j: j.warmup(progress=3), "progress must be a function, not int"),
        (lambda j: j.warmup(previews="no"), "previews must be True or False, not str"),
        (lambda j: j.sample("a cat", log_probs="no"), "log_probs must be True or False, not str"),
        (
            lambda j: j.answer(None, "a cat", stop=3),
            "stop must be a text or a list of texts, not int",
        ),
        (lambda j: Janus.load("x", verify="no"), "verify must be True or False, not str"),
        (lambda j: Janus.load("x", revision=""), "revision must be text .* not an empty one"),
    ],
)
def test_a_bad_option_is_one_line(janus, call, message):
    with pytest.raises(UserError, match=message) as error:
        call(janus)
    assert "\n" not in str(error.value)


def test_wrapped_methods_keep_their_signatures():
    from janus_jax.inference.conversation import Conversation

    for method in (Janus.save, Janus.encode_image, Janus.decode_codes, Conversation.ask):
        parameters = inspect.signature(method).parameters
        assert "args" not in parameters and "kwargs" not in parameters


@pytest.mark.parametrize("name", sorted(name for name in vars(Janus) if name[0] != "_"))
def test_every_public_method_has_an_example(name):
    assert ">>> " in inspect.getdoc(getattr(Janus, name))


def test_settings_that_do_not_exist_are_named():
    with pytest.raises(UserError, match=r"'cfg_weigth'\. Did you mean 'cfg_weight'"):
        GenerationConfig(cfg_weigth=2)
    with pytest.raises(UserError, match="must be a dict, not NoneType"):
        GenerationConfig.from_dict(None)
    assert next(iter(inspect.signature(GenerationConfig).parameters)) == "cfg_weight"
    config = GenerationConfig(2.0, stop=["."])
    assert pickle.loads(pickle.dumps(config)) == copy.deepcopy(config) == config
    assert hash(config) == hash(GenerationConfig(2.0, stop=(".",)))


@pytest.mark.heavy
def test_a_model_in_bfloat16_is_saved_with_equal_numbers(tmp_path):
    half = make_janus(fields=GUIDED, policy=Policy("bfloat16", "bfloat16"))
    half.save(tmp_path / "model")
    again = Janus.load(tmp_path / "model", dtype="bfloat16")
    one, other = (j.sample("a cat", n=2, log_probs=True) for j in (half, again))
    np.testing.assert_array_equal(one.codes, other.codes)
    np.testing.assert_array_equal(one.log_probs, other.log_probs)
    assert again.config.name == CONFIG.name


@pytest.mark.parametrize(
    ("module", "name", "place"),
    [
        ("janus_jax.data.emoji_scenes", "World", "janus_jax.emoji:World"),
        ("janus_jax.data.emoji_scenes", "TASKS", "janus_jax.emoji:SCENE_KINDS"),
        ("janus_jax.sampling", "Knobs", "janus_jax.inference:SamplingParams"),
        ("janus_jax.sampling", "Mode", "janus_jax.inference:StaticSampling"),
        ("janus_jax.sampling", "make_knobs", "janus_jax.inference:make_sampling_params"),
    ],
)
def test_former_names_warn_and_work(module, name, place):
    former = importlib.import_module(module)
    now, _, attribute = place.partition(":")
    with pytest.warns(DeprecationWarning, match=rf"now.*{attribute}|{attribute} now"):
        found = getattr(former, name)
    assert found is getattr(importlib.import_module(now), attribute)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = former.nothing


def test_old_names_warn_and_work():
    import janus_jax
    from janus_jax import inference, sampling

    with pytest.warns(DeprecationWarning, match=r"now janus_jax\.Janus"):
        assert sampling.Janus is Janus is janus_jax.Janus
    with pytest.warns(DeprecationWarning, match="enable_compilation_cache"):
        assert sampling.keep_programs is inference.enable_compilation_cache
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = sampling.nothing
