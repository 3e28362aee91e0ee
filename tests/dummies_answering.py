"""Predictors without a model: they answer at once, remember what they were asked, and can be killed."""

import hashlib

from dummies_drawing import Killed


class Answerer:
    """Answers with a function of the question, by default "Yes" or "No"; `asked` are the questions.

    Args:
      reply: question -> answer; raises what a model would raise.
      kill_at: the call that does not return, from 1.
    """

    def __init__(self, reply=None, kill_at=None):
        self.reply = reply or (
            lambda text: ["Yes", "No"][hashlib.md5(text.encode()).digest()[0] % 2]
        )
        self.kill_at = kill_at
        self.asked, self.calls, self.templates, self.settings = [], 0, [], []

    def prompting(self, template, system_prompt=""):
        self.templates.append((template, system_prompt))
        return self

    def answer(self, images, questions, **settings):
        self.calls += 1
        if self.calls == self.kill_at:
            raise Killed
        assert len(images) == len(questions)
        self.settings.append(settings)
        answers = [self.reply(question) for question in questions]
        self.asked += questions
        return answers


class Rows:
    """Questions of MME or another benchmark that are made when they are asked for."""

    def __init__(self, count, make, picture):
        self._count, self._make, self._picture = count, make, picture

    def __len__(self):
        return self._count

    def fields(self, position):
        return self._make(position)

    def pictures(self, position):
        return (self._picture,)

    def describe(self, position):
        return f"row {position}"
