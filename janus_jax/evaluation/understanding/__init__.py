"""Understanding benchmarks: POPE, MME, MMBench, SEED-Bench, GQA, MMMU, MM-Vet, from files as they are distributed.

from janus_jax.evaluation.understanding import get_protocol, make_prompt, open_benchmark, score_answers

protocol = get_protocol("paper", "pope")
items = open_benchmark("pope", "POPE.tsv", split=protocol.split)
answers, unreadable = {}, {}
for item in items:
    prompt = make_prompt(item, protocol)
    try:
        pictures = prompt.load_pictures()  # each uint8 [H, W, 3]
    except UserError as error:
        unreadable[item.index] = str(error)
        continue
    answers[item.index] = ask(pictures, prompt.pieces, prompt.max_new_tokens)
scores = score_answers(items, answers, protocol, unreadable=unreadable)
print(scores.headline, scores.beside, scores.counts)

Importing this needs neither jax nor pyarrow.
"""

from janus_jax.evaluation.understanding.benchmarks import (
    BENCHMARK_FACTS,
    BenchmarkFacts,
    benchmark_facts,
)
from janus_jax.evaluation.understanding.export import write_predictions
from janus_jax.evaluation.understanding.items import Item, Items, Picture
from janus_jax.evaluation.understanding.mmvet import (
    Grade,
    grader,
    grading_prompt,
    write_official_predictions,
)
from janus_jax.evaluation.understanding.opening import FORMATS, open_benchmark
from janus_jax.evaluation.understanding.parsers import (
    PARSERS,
    Judge,
    Reading,
    parse_answer,
)
from janus_jax.evaluation.understanding.prompts import Prompt, make_prompt
from janus_jax.evaluation.understanding.protocols import PROTOCOLS, Protocol, get_protocol
from janus_jax.evaluation.understanding.scores import BenchmarkScores, score_answers
from janus_jax.evaluation.understanding.verdicts import Verdict

__all__ = [
    "BENCHMARK_FACTS",
    "FORMATS",
    "PARSERS",
    "PROTOCOLS",
    "BenchmarkFacts",
    "BenchmarkScores",
    "Grade",
    "Item",
    "Items",
    "Judge",
    "Picture",
    "Prompt",
    "Protocol",
    "Reading",
    "Verdict",
    "benchmark_facts",
    "get_protocol",
    "grader",
    "grading_prompt",
    "make_prompt",
    "open_benchmark",
    "parse_answer",
    "score_answers",
    "write_official_predictions",
    "write_predictions",
]
