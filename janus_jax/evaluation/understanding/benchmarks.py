"""The seven understanding benchmarks: names, files that numbers can be compared on, and their categories."""

from __future__ import annotations

import dataclasses

from janus_jax.errors import UserError, nearest
from janus_jax.untrusted import shown


@dataclasses.dataclass(frozen=True)
class BenchmarkFacts:
    """What is known of a benchmark apart from any file.

    Attributes:
      name: here.
      title: in papers.
      vlmevalkit: name of the data set in VLMEvalKit, which is also that of its file.
      md5: of that file.
    """

    name: str
    title: str
    vlmevalkit: str
    md5: str


BENCHMARK_FACTS = {
    facts.name: facts
    for facts in (
        BenchmarkFacts("pope", "POPE", "POPE", "c12f5acb142f2ef1f85a26ba2fbe41d5"),
        BenchmarkFacts("mme", "MME", "MME", "b36b43c3f09801f5d368627fb92187c3"),
        BenchmarkFacts("mmbench", "MMBench", "MMBench_DEV_EN", "b6caf1133a01c6bb705cf753bb527ed8"),
        BenchmarkFacts("seed", "SEED-Bench", "SEEDBench_IMG", "68017231464752261a2526d6ca3a10c0"),
        BenchmarkFacts("gqa", "GQA", "GQA_TestDev_Balanced", "99b62f22e224d9b2f32dcbe41359d1c9"),
        BenchmarkFacts("mmmu", "MMMU", "MMMU_DEV_VAL", "585e8ad75e73f75dcad265dfd0417d64"),
        BenchmarkFacts("mmvet", "MM-Vet", "MMVet", "748aa6d4aa9d4de798306a63718455e3"),
    )
}

POPE_SUBSETS = ("random", "popular", "adversarial")
PERCEPTION = (
    *("existence", "count", "position", "color", "posters"),
    *("celebrity", "scene", "landmark", "artwork", "OCR"),
)
COGNITION = (
    *("commonsense_reasoning", "numerical_calculation"),
    *("text_translation", "code_reasoning"),
)
# SEED-Bench's kinds of questions, 1 to 12; those about videos are the last three.
SEED_KINDS = (
    *("Scene Understanding", "Instance Identity", "Instance Attributes", "Instance Location"),
    *("Instances Counting", "Spatial Relation", "Instance Interaction", "Visual Reasoning"),
    *("Text Understanding", "Action Recognition", "Action Prediction", "Procedure Understanding"),
)
MMMU_DISCIPLINES = {
    "Art and Design": "Art Art_Theory Design Music",
    "Business": "Accounting Economics Finance Manage Marketing",
    "Science": "Biology Chemistry Geography Math Physics",
    "Health and Medicine": "Basic_Medical_Science Clinical_Medicine "
    "Diagnostics_and_Laboratory_Medicine Pharmacy Public_Health",
    "Humanities and Social Science": "History Literature Sociology Psychology",
    "Tech and Engineering": "Agriculture Architecture_and_Engineering Computer_Science Electronics "
    "Energy_and_Power Materials Mechanical_Engineering",
}
MMMU_DISCIPLINE_OF = {
    subject: discipline
    for discipline, subjects in MMMU_DISCIPLINES.items()
    for subject in subjects.split()
}
MMVET_ABILITIES = ("rec", "ocr", "know", "gen", "spat", "math")

# Of the benchmarks whose files all call them the same.
CATEGORIES = {
    "pope": frozenset(POPE_SUBSETS),
    "mme": frozenset(PERCEPTION + COGNITION),
    "mmmu": frozenset(MMMU_DISCIPLINE_OF),
    "mmvet": frozenset(MMVET_ABILITIES),
}


def benchmark_facts(name: str) -> BenchmarkFacts:
    """The benchmark called `name`; UserError if there is none."""
    if name not in BENCHMARK_FACTS:
        raise UserError(
            f"unknown benchmark {shown(name)}, expected one of {', '.join(BENCHMARK_FACTS)}."
            + nearest(str(name)[:100].lower(), BENCHMARK_FACTS)
        )
    return BENCHMARK_FACTS[name]
