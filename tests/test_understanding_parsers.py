"""What answers are found to say, where the rules of the harnesses are odd."""

import pytest

from janus_jax.evaluation.understanding import Item, parse_answer
from janus_jax.evaluation.understanding.choices import (
    first_letter,
    infer_option,
    infer_option_lmms,
    infer_option_mmmu,
    option_by_text,
    option_of,
)
from janus_jax.evaluation.understanding.open_answers import (
    exact_lmms,
    exact_official,
    exact_vlmevalkit,
    open_is_right,
    read_open,
)
from janus_jax.evaluation.understanding.parsers import (
    JUDGED,
    RANDOM,
    READ,
    REFUSED,
    UNREAD,
)
from janus_jax.evaluation.understanding.yes_no import (
    without_punctuation,
    yes_no_exact,
    yes_no_first_letters,
    yes_no_pope,
    yes_no_vlmevalkit,
)

OPTIONS = {"A": "a red dog", "B": "Two cats", "C": "no one", "D": "1,200"}


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("b", None),  # letters are capitals
        ("(B)", "B"),
        ("**B**.", "B"),
        ("The option is B because", "B"),
        ("B is what I would take", None),  # the fifth word from the end
        ("B is what would fit", None),
        ("B is the one", "B"),
        ("A or B", None),
        ("B, that is: B", "B"),  # its first place counts, which is among the last four
        ("B or maybe not, still B", None),
        ("the answer is B because there are two of them here", "B"),
        ("answer is **d** as far as I can see from here", "D"),
        ("the answer is E as far as I can see from here", None),  # it knows A to D alone
        ("A and C; so the correct answer is C, not A", "C"),
        ("Z", "Z"),
        ("I can't process this file.", "Z"),
        ("i can't process this file.", None),
        ("B. Cannot determine the answer", "Z"),
        ("Failed to obtain answer via API B", None),
        ("", None),
    ],
)
def test_vlmevalkit_reads_a_letter(answer, letter):
    assert option_of(answer, OPTIONS) == letter


def test_the_release_does_not_look_for_answer_is():
    assert option_of("the answer is B because there are two of them", OPTIONS, False) is None


def test_vlmevalkit_reads_the_text_of_an_option():
    assert infer_option("two CATS", OPTIONS) == "B"
    assert infer_option("two cats and a red dog", OPTIONS) is None  # of two options
    assert infer_option("nothing of this", OPTIONS) is None
    length = sum(map(len, OPTIONS.values()))
    fits = "two cats" + "." * (2 * length - 8)
    assert infer_option(fits, OPTIONS) == "B"
    assert infer_option(fits + ".", OPTIONS) is None  # more than twice all of them
    assert option_by_text("x", {}) is None


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("A", "A"),
        ("A dog is there", None),  # an article; no text either
        ("A red dog is there", "A"),  # the text of the option
        ("So it is B", "B"),
        ("B.", "B"),
        ("(B)", "B"),
        ("**B**", None),
        ("E", "E"),
        ("two cats " + "and so on " * 30, "B"),  # however long
        ("a banana", None),  # "nan" is in it, as the text of two options that are missing
    ],
)
def test_lmms_eval_reads_mmbench(answer, letter):
    options = {"A": "red dog", "B": "two cats"}
    assert infer_option_lmms(answer, options) == letter


def test_a_missing_option_is_called_nan_in_lmms_eval():
    assert infer_option_lmms("a banana", {"A": "x", "B": "y", "C": "z"}) == "D"


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("(B) not (A)", "A"),  # the last of several
        ("(B) or A", "B"),  # brackets win
        ("A then B", "B"),
        ("B.", "B"),
        ("B. because", "B"),
        ("NASA ", "A"),  # inside of a word
        ("It is surely the red dog, I think", "A"),
        ("a red dog", "drawn"),  # five words at most: no texts
        ("", "drawn"),
        ("'C'", "C"),
        ("neither two cats nor no one is in there", "C"),
    ],
)
def test_mmmu_reads_a_letter_or_draws_one(answer, letter):
    options = {"A": "red dog", "B": "Two cats", "C": "no one"}
    found, drawn = infer_option_mmmu(answer, options, lambda letters: "drawn")
    assert (found, drawn) == (letter, letter == "drawn")


def test_a_draw_depends_on_the_seed_and_the_item_alone():
    items = [Item(str(i), "q", "A", options=OPTIONS) for i in range(400)]
    first = [parse_answer("mmmu", "?", item, seed=0) for item in items]
    assert first == [parse_answer("mmmu", "?", item, seed=0) for item in items[::-1]][::-1]
    assert first != [parse_answer("mmmu", "?", item, seed=1) for item in items]
    assert {reading.how for reading in first} == {RANDOM}
    assert all(60 < sum(r.said == letter for r in first) < 140 for letter in OPTIONS)


@pytest.mark.parametrize(
    ("answer", "truth", "right"),
    [
        ("3.5", "3.50", True),
        ("The result is 1,200 dollars", "1200", True),
        ("x = 5 = 3.4999", "3.5", True),  # two decimals
        ("so it is 7. The end", "7", True),
        ("about 70", "7", False),
        ("therefore Twenty-Four", "twenty-four", True),
        ("it is in a lab", "b", False),  # a single letter needs a blank beside it
        ("it is b or so", "b", True),
        ("No idea", "4", False),
        ("2e3", "2000", True),
        ("4", "['4', 'four']", False),  # the list is a text
    ],
)
def test_open_questions_of_mmmu(answer, truth, right):
    assert open_is_right(read_open(answer), [truth]) is right


def test_several_true_answers():
    assert open_is_right(read_open("It is four"), ["4", "four"])
    assert not open_is_right(read_open("It is five"), ["4", "four"])


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("Yes", "Yes"),
        ("yes, there is", "Yes"),
        ("No.", "No"),
        ("There is no dog; yes", None),  # both
        ("maybe", None),
        ("yesterday", None),
        ("yes/no", None),
        ("yes/ no", None),  # a blank beside the slash of all: "yesno" would be the word without it
        ("not", None),
        ("1,000 yes-no", None),
    ],
)
def test_vlmevalkit_reads_yes_or_no(answer, said):
    assert yes_no_vlmevalkit(answer) == said


def test_the_count_of_periods_is_the_value_of_a_flag():
    assert without_punctuation("." * 32 + "yes") == "yes"
    assert without_punctuation("." * 33 + "yes") == ".yes"
    assert yes_no_vlmevalkit("." * 32 + " yes") == "Yes"
    assert yes_no_vlmevalkit("." * 33 + "yes") is None
    assert without_punctuation("3.5 is e.g. it.") == "3.5 is eg it"


def test_punctuation_vanishes_beside_a_blank_or_with_a_number():
    assert without_punctuation("a-b") == "a b"
    assert without_punctuation("a-b - c") == "ab  c"
    assert without_punctuation("a-b 1,000") == "ab 1000"
    assert without_punctuation("a-b (1, 000)") == "a b 1 000 "


def test_popes_own_rule():
    assert yes_no_pope("No, it is. Yes") == "No"
    assert yes_no_pope("There is not one") == "No"
    assert yes_no_pope("Yes. No") == "Yes"
    assert yes_no_pope("NO") == "Yes" and yes_no_pope("") == "Yes" and yes_no_pope("none") == "Yes"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        *(("Yes, it is", "Yes"), ("y", "Yes"), ("N.", "No"), (" no", "No"), ("not sure", "No")),
        *(("a yes", None), (" ayes", "Yes"), ("now", "No"), ("the no", None), ("...yes", "Yes")),
        *(("", None), ("x", None)),
    ],
)
def test_the_first_four_characters(answer, said):
    assert yes_no_first_letters(answer) == said


def test_lmms_eval_wants_pope_exactly():
    assert yes_no_exact(" YES\n") == "Yes" and yes_no_exact("no") == "No"
    assert yes_no_exact("Yes.") is None


def test_exact_matches_of_gqa():
    assert exact_vlmevalkit(" Red ", "red") and not exact_vlmevalkit("red.", "red")
    assert exact_lmms("t shirt.", "T shirt") and exact_lmms("T-shirt", "tshirt")
    assert not exact_lmms("t  shirt", "t shirt")
    assert exact_official(" Red. ", "red") and not exact_official("re.d", "red")


def test_the_first_letter():
    assert first_letter(" a dog") == "A" and first_letter("") == "" and first_letter("(B)") == "("


def test_a_judge_is_asked_where_nothing_can_be_read():
    item = Item("1", "Which?", "B", options=OPTIONS)
    asked = []
    judge = lambda *given: asked.append(given) or "B"
    assert parse_answer("choice_vlmevalkit", "A", item, judge).how == READ and not asked
    assert parse_answer("choice_vlmevalkit", "the kitties", item, judge).how == JUDGED
    assert asked == [("Which?", OPTIONS, "the kitties")]
    assert (
        parse_answer("choice_vlmevalkit", "I can't process this file.", item, judge).how == REFUSED
    )
    for nonsense in (None, "Z", "Q", "b", 3, ["B"]):
        reading = parse_answer("choice_vlmevalkit", "kitties", item, lambda *given: nonsense)  # noqa: B023
        assert (reading.said, reading.right, reading.how) == ("", False, UNREAD)
    yes = Item("1", "Is it?", "Yes")
    said = parse_answer(
        "yes_no_vlmevalkit", "I think so", yes, lambda question, options, answer: max(options)
    )
    assert (said.said, said.right, said.how) == ("Yes", True, JUDGED)


def test_open_questions_of_mmmu_in_vlmevalkit_have_two_options():
    item = Item("1", "How much?", "3.5")
    assert parse_answer("choice_vlmevalkit_mmmu", "it is 3.5", item).right
    assert parse_answer("choice_vlmevalkit_mmmu", "A", item).right
    assert not parse_answer("choice_vlmevalkit_mmmu", "B", item).right
    assert not parse_answer("choice_vlmevalkit_mmmu", "other answers", item).right
    long = "I have thought about it very long: it is 3.5, as one can see"
    assert parse_answer("choice_vlmevalkit_mmmu", long, item).how == UNREAD
