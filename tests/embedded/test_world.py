"""The small world: the same everywhere, told without overlap, and asked with right answers."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from llmc.embedded import write_texts
from llmc.embedded.grammar import RELATIONS
from llmc.embedded.world import Choice, Drill, Kind, Split, World, build_world, cloze, documents, drills, questions
from llmc.errors import UsageError

KINDS: tuple[Kind, ...] = ("recall", "in_context", "copy", "multi_hop", "story")
DRILLS: tuple[Drill, ...] = ("copying", "finding")
UNKNOWN: Any = "riddle"  # neither a kind, nor a split, nor a drill
SPLITS: tuple[Split, ...] = ("train", "calibration", "evaluation")


@pytest.fixture(scope="module")
def world() -> World:
    return build_world()


@pytest.fixture(scope="module")
def told(world: World) -> dict[Split, list[str]]:
    sizes = {"train": 1_500_000, "calibration": 300_000, "evaluation": 300_000}
    return {split: list(documents(world, split, characters=sizes[split])) for split in SPLITS}


def _run(code: str, hash_seed: str) -> str:
    environment = {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": ":".join(sys.path)}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_world_is_a_function_of_its_seed(world: World) -> None:
    assert build_world(0) == world
    assert build_world(1).facts != world.facts
    assert 60 <= len(world.entities) <= 150
    assert len(set(world.entities)) == len(world.entities)


def test_every_subject_has_one_value_of_each_of_its_relations(world: World) -> None:
    subjects = {
        "person": [person.name for person in world.people],
        "pet": list(world.pets),
        "event": list(world.events),
        "town": list(world.towns),
    }
    expected = {(name, key) for key, relation in RELATIONS.items() for name in subjects[relation.subject]}
    assert {(fact.subject, fact.relation) for fact in world.facts} == expected
    assert len(world.facts) == len(expected)


def test_siblings_and_friends_are_mutual_and_different(world: World) -> None:
    for person in world.people:
        sibling, friend = (world.value(person.name, relation) for relation in ("sibling", "friend"))
        assert world.value(sibling, "sibling") == world.value(friend, "friend") == person.name
        assert len({person.name, sibling, friend}) == 3
        assert world.person(sibling).surname == person.surname


def test_text_and_questions_do_not_depend_on_hash_randomisation() -> None:
    code = (
        "from hashlib import sha256; from llmc.embedded.world import build_world, documents, questions;"
        "w = build_world();"
        "text = [*documents(w, 'evaluation', count=300), *documents(w, 'train', count=300)];"
        "asked = [q for k in ('recall', 'in_context', 'copy', 'multi_hop', 'story') for q in questions(w, k, 100)];"
        "print(sha256(repr((w.facts, text, asked)).encode()).hexdigest())"
    )
    assert _run(code, "1") == _run(code, "2")


def test_text_is_frozen(world: World) -> None:
    """The embedded model was trained on this text: whoever changes the text trains the model again."""
    text = "\n\n".join(documents(world, "train", count=500))
    assert sha256(text.encode()).hexdigest() == "bf0e02ff7682ed5976792be036c4842e173b997c34b3f9c7e3d0ab1d61f50f5a"
    drilled = "\n".join([*(line for kind in DRILLS for line in drills(world, kind, 20_000))])
    assert sha256(drilled.encode()).hexdigest() == "b55b80f3f16a98fcadf1ef06f9285f8633d50ce431781305566f92c5ace8f924"


def test_importing_the_package_imports_no_torch() -> None:
    code = "import llmc.embedded, llmc.embedded.world, sys; print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    assert _run(code, "0") == "[]"


def test_drills_are_of_the_train_split(world: World, told: dict[Split, list[str]]) -> None:
    drilled = {line for kind in DRILLS for line in drills(world, kind, 400_000)}
    assert len(drilled) > 2000
    assert all(sha256(line.encode()).digest()[0] % 4 < 2 for line in drilled)
    for split in ("calibration", "evaluation"):
        assert not drilled & {line for document in told[split] for line in document.split("\n")}


def test_splits_share_no_document_and_no_paragraph(told: dict[Split, list[str]]) -> None:
    for one, other in combinations(SPLITS, 2):
        assert not set(told[one]) & set(told[other])
        lines = [{line for document in told[split] for line in document.split("\n")} for split in (one, other)]
        assert min(map(len, lines)) > 500
        assert not lines[0] & lines[1]


def test_every_fact_recurs_in_training_text_in_several_wordings(world: World, told: dict[Split, list[str]]) -> None:
    sentences = [
        sentence
        for document in told["train"]
        for sentence in re.split(r"(?<=\.)\s", document)
        if "Notes:" not in sentence
    ]
    by_subject = {name: {text for text in sentences if name in text} for name in world.entities}
    for fact in world.facts:
        wanted = re.compile(
            re.escape(fact.value.split()[-1] if fact.relation != "sibling" else fact.value.split()[0]), re.I
        )
        assert sum(bool(wanted.search(text)) for text in by_subject[fact.subject]) >= 3, fact


def test_limits_cut_the_same_sequence(world: World) -> None:
    ten, twenty = (list(documents(world, "train", count=n)) for n in (10, 20))
    assert twenty[:10] == ten
    limited = list(documents(world, "train", characters=1000))
    assert sum(map(len, limited[:-1])) < 1000 <= sum(map(len, limited))
    assert limited == twenty[: len(limited)]
    few, many = (list(questions(world, "recall", n)) for n in (5, 9))
    assert many[:5] == few


@pytest.mark.parametrize("kind", KINDS)
def test_items_have_four_different_choices(world: World, kind: Kind) -> None:
    items = list(questions(world, kind, 500))
    assert len(items) == 500
    for item in items:
        assert set(item) == {"query", "choices", "gold"}
        assert len(set(item["choices"])) == 4
        assert item["query"] == item["query"].strip()
        assert json.loads(json.dumps(item)) == item
        assert cloze(item) == {"context": item["query"], "continuation": item["choices"][item["gold"]]}
    assert {item["gold"] for item in items} == {0, 1, 2, 3}


def _solve_recall(world: World, item: Choice) -> set[str]:
    """Choices that some fact about an entity named in the query supports: word matching, no templates."""
    asked = item["query"].split("Notes: ")[-1].split(". ")[-1]
    values = {fact.value for fact in world.facts if fact.subject in asked}
    bare = {re.sub("^an? ", "", choice): choice for choice in item["choices"]}
    firsts = {value.split()[0] for value in values}
    return {choice for text, choice in bare.items() if text in values or text in firsts}


@pytest.mark.parametrize("kind", ("recall", "in_context"))
def test_recall_items_agree_with_the_facts(world: World, kind: Kind) -> None:
    for item in questions(world, kind, len(world.facts) * 2):
        assert item["choices"][item["gold"]] in _solve_recall(world, item)


def test_recall_covers_every_fact_once_a_round(world: World) -> None:
    queries = [item["query"] for item in questions(world, "recall", len(world.facts))]
    assert len(set(queries)) == len(world.facts)


def test_in_context_items_state_the_answer_and_ask_what_recall_asks(world: World) -> None:
    pairs = zip(questions(world, "recall", 600), questions(world, "in_context", 600), strict=True)
    for closed, opened in pairs:
        assert opened["query"].endswith(" " + closed["query"])
        assert sorted(opened["choices"]) == sorted(closed["choices"])
        answer = closed["choices"][closed["gold"]]
        assert opened["choices"][opened["gold"]] == answer
        assert opened["query"].count(f"{answer}.") == 1


def test_only_the_right_copy_repeats_the_words(world: World) -> None:
    for item in questions(world, "copy", 200):
        words = re.fullmatch("Say it again: (.*)[.] Again:", item["query"])
        assert words
        assert [choice == words[1] for choice in item["choices"]].index(True) == item["gold"]
        assert len({tuple(sorted(choice.split())) for choice in item["choices"]}) == 1


def test_multi_hop_items_need_both_facts(world: World) -> None:
    for item in questions(world, "multi_hop", 200):
        right = []
        for choice in item["choices"]:
            lead = re.fullmatch("The (.*) of (.*) is", item["query"])
            bridge, clause = choice.split(", who ")
            assert lead
            relation = "friend" if lead[1] == "best friend" else "sibling"
            known = {fact.value for fact in world.about(bridge)}
            holds = any(clause.endswith(value) for value in known)
            right.append(world.value(lead[2], relation) == bridge and holds)
        assert right.index(True) == item["gold"]
        assert sum(right) == 1


def test_story_items_are_answered_by_following_the_things(world: World) -> None:
    for item in questions(world, "story", 300):
        where = {
            thing: place for thing, place in re.findall(r"(?:put|moved) the (\w+) (?:in|to) the (\w+)", item["query"])
        }
        asked = re.search(r"So the (\w+) is now in the$", item["query"])
        assert asked
        assert item["choices"][item["gold"]] == where[asked[1]]


def test_texts_are_the_same_bytes_each_time(tmp_path: Path) -> None:
    one, two = write_texts(tmp_path / "new" / "one"), write_texts(tmp_path / "two")
    assert set(one) == {"calibration", "evaluation"}
    for name, path in one.items():
        assert path.read_bytes() == two[name].read_bytes()
        assert path.stat().st_size > 100_000
    paragraphs = [set(path.read_text().splitlines()) - {""} for path in one.values()]
    assert not paragraphs[0] & paragraphs[1]


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (
            lambda world: list(documents(world, UNKNOWN, count=1)),
            "no split is called 'riddle'; use one of train, calibration, evaluation",
        ),
        (lambda world: list(documents(world, "train")), "documents need one limit; give either count or characters"),
        (
            lambda world: list(drills(world, UNKNOWN, 1)),
            "no drill is called 'riddle'; use one of copying, finding",
        ),
        (
            lambda world: list(questions(world, UNKNOWN, 1)),
            "no question is called 'riddle'; use one of recall, in_context, copy, multi_hop, story",
        ),
    ],
)
def test_wrong_arguments_are_refused(world: World, call: Callable[[World], Any], line: str) -> None:
    with pytest.raises(UsageError) as refused:
        call(world)
    assert str(refused.value) == line
