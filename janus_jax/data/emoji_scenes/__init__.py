"""Emoji scenes: a small world with exact ground truth, built in.

`World` says what exists and what is held out, `random_scene` draws a scene, `render` makes its picture,
and `caption`, `question`, `description`, `picture_in_words`, `fact` put it into words.
"""

from janus_jax.data.emoji_scenes.language import (
    DESCRIBE,
    DESCRIBE_IN_DETAIL,
    KIND_TASKS,
    NUMBERS,
    QUESTION_KINDS,
    Question,
    article,
    caption,
    description,
    detailed_caption,
    drawing_in_words,
    fact,
    picture_in_words,
    place,
    plural,
    question,
    thing,
    vocabulary,
)
from janus_jax.data.emoji_scenes.scene import (
    OPPOSITE,
    RELATIONS,
    TASKS,
    Placement,
    Scene,
    random_scene,
    relation_between,
    render,
)
from janus_jax.data.emoji_scenes.world import BACKGROUNDS, TINTS, World

__all__ = [
    "BACKGROUNDS",
    "DESCRIBE",
    "DESCRIBE_IN_DETAIL",
    "KIND_TASKS",
    "NUMBERS",
    "OPPOSITE",
    "QUESTION_KINDS",
    "RELATIONS",
    "TASKS",
    "TINTS",
    "Placement",
    "Question",
    "Scene",
    "World",
    "article",
    "caption",
    "description",
    "detailed_caption",
    "drawing_in_words",
    "fact",
    "picture_in_words",
    "place",
    "plural",
    "question",
    "random_scene",
    "relation_between",
    "render",
    "thing",
    "vocabulary",
]
