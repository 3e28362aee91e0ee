"""The page in a real browser, on an engine without a model."""

import re

import dummies_serving
import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("gradio", minversion="6")
pytest.importorskip("playwright")

from dummies_serving import file_of
from page_browser import CHROMIUM, WORDS, SlowEngine, browser, opened, serving

from janus_jax.errors import UserError
from janus_jax.serving import jobs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium"),
]


def wait_for(condition):
    """As long as the browser itself is waited for."""
    dummies_serving.wait_for(condition, 30)


@pytest.fixture(scope="module")
def chromium():
    with browser() as started:
        yield started


@pytest.fixture
def engine():
    return SlowEngine()


@pytest.fixture
def page(chromium, engine):
    """The page of `engine`; at the end nothing was asked of other servers, and no script had failed."""
    with serving(engine) as address, opened(chromium, address) as page:
        yield page
        assert page.outside == [] and page.faults == []


def start(page, engine, prompt="a cat", seed=7):
    count = len(engine.jobs)
    page.fill("#prompt textarea", prompt)
    page.fill("#seed :is(input, textarea)", str(seed))
    page.click("#draw")
    wait_for(lambda: len(engine.jobs) > count)


def line(page, words, where="#draw_line"):
    page.locator(where).get_by_text(re.compile(words)).wait_for(timeout=30_000)


def test_a_picture_grows_is_finished_and_can_be_taken_home(page, engine):
    start(page, engine)
    done, sources = [], []
    for codes in (4, 8, 12):
        engine.step()
        line(page, f"{codes} of 16 codes")
        done.append(page.locator(".card.growing").get_attribute("data-done"))
        sources.append(page.locator(".card img").get_attribute("src"))
    assert done == ["25", "50", "75"] and len(set(sources)) == 3
    engine.finish()
    page.locator(".card.finished").wait_for()
    with page.expect_download() as taken:
        page.click("a.download")
    assert taken.value.suggested_filename == "a_cat_seed7_0.png"
    assert page.locator("#used :is(input, textarea)").input_value() == "7"
    page.locator("#gallery img").first.wait_for()
    assert page.locator("#seed :is(input, textarea)").input_value() == "7"
    start(page, engine, "a dog", seed="")  # a second one, of a random seed
    page.locator("#gallery button.thumbnail-item >> nth=1").wait_for()
    assert page.locator("#used :is(input, textarea)").input_value() == str(engine.jobs[1].seed)
    newest, older = (page.locator("#gallery .caption-label").nth(i).inner_text() for i in (0, 1))
    assert newest.startswith("a dog") and older.startswith("a cat")


def test_without_a_seed_it_is_random_and_can_be_kept(page, engine):
    engine.finish()
    page.fill("#prompt textarea", "a cat")
    for count in (1, 2):
        page.click("#draw:enabled")
        wait_for(lambda count=count: len(engine.jobs) == count)
        page.locator("#draw:enabled").wait_for()
    first, second = (job.seed for job in engine.jobs)
    assert first != second and engine.jobs[0].top_k is None
    page.click("#keep_seed")
    page.get_by_text("Settings").first.click()
    wait_for(lambda: page.locator("#seed :is(input, textarea)").input_value() == str(second))
    page.click("#draw:enabled")
    wait_for(lambda: len(engine.jobs) == 3)
    assert engine.jobs[2] == engine.jobs[1]


def test_stop_frees_the_place_and_keeps_what_is_seen(page, engine):
    start(page, engine)
    engine.step(2)
    line(page, "of 16 codes")
    page.click("#draw_stop")
    line(page, "Stopped")
    wait_for(lambda: engine.cancelled)
    assert page.locator(".card img").count() == 1 and page.locator("#draw").is_enabled()
    engine.finish()
    start(page, engine)
    page.locator(".card.finished").wait_for()


@pytest.mark.parametrize("how", ["reload", "close"])
def test_a_page_that_is_left_frees_its_place(chromium, engine, how):
    with serving(engine) as address:
        with opened(chromium, address) as page:
            start(page, engine)
            engine.step(2)
            line(page, "of 16 codes")
            if how == "reload":
                page.reload()
                wait_for(lambda: engine.cancelled)
                page.locator("#prompt textarea").wait_for()
                engine.finish()
                start(page, engine, "again")
                page.locator(".card.finished").wait_for()
        wait_for(lambda: engine.cancelled)
    assert [job.prompt for job in engine.cancelled] == ["a cat"]


def test_a_picture_is_asked_about(page, engine):
    page.get_by_role("tab", name="Chat").click()
    files = [{"name": "tree.png", "mimeType": "image/png", "buffer": file_of()}]
    page.set_input_files("#question input[type=file]", files)
    page.locator("#question .thumbnail-item, #question img").first.wait_for()
    page.fill("#question textarea", "what is <b>it</b>? ![](http://example.com/x.png)")
    page.press("#question textarea", "Enter")
    chat = page.locator("#chat")
    chat.get_by_text("I", exact=True).wait_for()  # the first word
    engine.step()
    chat.get_by_text("I see").wait_for()
    engine.finish()
    chat.get_by_text("".join(WORDS)).wait_for()
    assert chat.get_by_text("what is <b>it</b>? ![](http://example.com/x.png)").count() == 1
    assert [picture.shape for picture in engine.jobs[0].messages[0].pictures] == [(16, 16, 3)]
    assert page.locator("#question textarea").input_value() == ""
    page.fill("#question textarea", "and what else?")
    page.press("#question textarea", "Enter")
    wait_for(lambda: len(engine.jobs) == 2)
    assert [m.role for m in engine.jobs[1].messages] == ["user", "assistant", "user"]
    page.locator("#retry:enabled").wait_for()
    engine.hold()
    page.locator("#retry:enabled").click()
    wait_for(lambda: len(engine.jobs) == 3)
    assert engine.jobs[2].messages[-1].text == "and what else?"
    page.locator("#clear:disabled").wait_for()
    page.fill("#question textarea", "too early")
    page.press("#question textarea", "Enter")
    page.get_by_text("wait for the answer").wait_for()
    assert page.locator("#question textarea").input_value() == "too early"
    engine.finish()
    page.locator("#retry:enabled").wait_for()
    page.click("#clear")
    chat.get_by_text("and what else?").wait_for(state="detached")


def test_what_goes_wrong_is_shown_and_the_question_is_still_there(page, engine):
    engine.script = lambda job: UserError("the conversation is too long")
    page.get_by_role("tab", name="Chat").click()
    page.fill("#question textarea", "a long question")
    page.press("#question textarea", "Enter")
    line(page, "the conversation is too long", "#chat_line")
    assert page.locator("#question textarea").input_value() == "a long question"
    engine.script = lambda job: jobs.QueueFull(9)
    page.get_by_role("tab", name="Draw").click()
    page.fill("#prompt textarea", "a cat")
    page.click("#draw")
    line(page, "try again in 9 s")


def test_a_drawn_picture_goes_to_the_conversation(page, engine):
    engine.finish()
    start(page, engine)
    page.locator("#gallery button.thumbnail-item").first.click()
    page.locator("#use:enabled").click()
    page.locator("#question img").first.wait_for()
    page.fill("#question textarea", "what is it?")
    page.press("#question textarea", "Enter")
    page.locator("#retry:enabled").wait_for()
    assert len(engine.jobs[1].messages[0].pictures) == 1


def test_many_pages_draw_at_the_same_time(chromium, engine):
    with (
        serving(engine) as address,
        opened(chromium, address) as one,
        opened(chromium, address) as two,
    ):
        start(one, engine, "one")
        start(two, engine, "two")  # while the first is drawn
        assert [job.prompt for job in engine.jobs] == ["one", "two"]
        engine.finish()
        for page in (one, two):
            page.locator(".card.finished").wait_for()


def test_the_browser_is_asked_for_the_key_and_sends_it(chromium, engine):
    with serving(engine, key="the:key") as address:
        login = {"username": "me", "password": "the:key"}
        with opened(chromium, address, http_credentials=login) as page:
            start(page, engine)
            engine.finish()
            page.locator(".card.finished").wait_for()


def test_it_says_that_it_compiles_until_it_does_not(chromium, engine):
    engine.ready = False
    with serving(engine) as address, opened(chromium, address) as page:
        page.locator("#state .busy").wait_for()
        start(page, engine)
        engine.ready = True
        page.locator("#state .ready").wait_for(timeout=30_000)


def test_it_fits_a_phone(chromium, engine):
    engine.finish()
    with serving(engine) as address, opened(chromium, address, (390, 844)) as page:
        start(page, engine)
        page.locator("#gallery img").first.wait_for()
        for tab in ("Draw", "Chat"):
            page.get_by_role("tab", name=tab).click()
            assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_on_a_phone_the_state_does_not_cover_the_name_of_the_model(chromium, engine):
    engine.ready = False  # the longer text
    with serving(engine) as address, opened(chromium, address, (360, 800)) as page:
        page.locator("#state .busy").wait_for()
        name = page.locator("#title span").last.bounding_box()
        state = page.locator("#state .busy").bounding_box()
        beside = name["x"] + name["width"] <= state["x"]
        assert beside or name["y"] + name["height"] <= state["y"]
        assert state["x"] + state["width"] <= 360


def test_a_slider_that_was_emptied_takes_the_default(page, engine):
    page.fill("#prompt textarea", "a cat")
    page.fill("input[aria-label='number input for Pictures']", "")
    page.click("#draw")
    wait_for(lambda: engine.jobs or "must" in page.inner_text("#draw_line"))
    engine.finish()
    assert engine.jobs[0].n == 1


def test_a_file_that_is_too_large_is_refused_in_the_page(chromium, engine):
    engine.finish()
    with (
        serving(engine, limits={"picture_bytes": 5000}) as address,
        opened(chromium, address) as page,
    ):
        page.get_by_role("tab", name="Chat").click()
        files = [{"name": "big.png", "mimeType": "image/png", "buffer": bytes(6000)}]
        page.set_input_files("#question input[type=file]", files)
        page.get_by_text("exceed the maximum allowed size").first.wait_for()
        files[0]["buffer"] = bytes(100)
        page.set_input_files("#question input[type=file]", files)
        page.locator("#question .thumbnail-item, #question img").first.wait_for()
        page.fill("#question textarea", "what?")
        page.press("#question textarea", "Enter")
        line(page, "big.png is no picture", "#chat_line")
        assert page.locator("#question textarea").input_value() == "what?" and not engine.jobs
