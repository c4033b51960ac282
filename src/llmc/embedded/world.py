"""The small seeded world, the text that tells of it, and questions about it.

Everything is drawn with `random.Random` seeded by strings, so that it is the same on every machine and in every
process. A paragraph belongs to the split that its SHA-256 says: a split draws paragraphs until one is its own. So no
paragraph, and with it no story and no document, can occur in two splits, while the facts recur in all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from hashlib import sha256
from random import Random
from typing import Literal, TypedDict, get_args

from llmc.embedded import stories, telling, vocabulary
from llmc.embedded.facts import Fact, Person, World, build_world
from llmc.embedded.grammar import RELATIONS
from llmc.errors import UsageError

Split = Literal["train", "calibration", "evaluation"]
Kind = Literal["recall", "in_context", "copy", "multi_hop", "story"]
Drill = Literal["copying", "finding"]


class Choice(TypedDict):
    """Multiple choice: `choices[gold]` is what follows `query` and one space."""

    query: str
    choices: list[str]
    gold: int


class Cloze(TypedDict):
    """`continuation` is what follows `context` and one space."""

    context: str
    continuation: str


_SPLITS: dict[str, tuple[int, ...]] = {"train": (0, 1), "calibration": (2,), "evaluation": (3,)}
_TELLERS: tuple[tuple[Callable[[Random, World, Person], str], int], ...] = (
    (telling.biography, 6),
    (telling.relatives, 3),
    (telling.description, 3),
    (telling.quiz, 4),
    (telling.open_quiz, 6),
    (stories.hiding, 3),
    (stories.moving, 3),
    (stories.lending, 1),
    (stories.journey, 2),
    (stories.shopping, 2),
    (stories.counting, 1),
    (stories.festival, 1),
    (stories.ledger, 3),
    (stories.copying, 5),
)

_DRILLS: dict[str, tuple[tuple[Callable[[Random, World, Person], str], int], ...]] = {
    "copying": ((stories.copying, 2), (stories.ledger, 1)),
    "finding": (
        (telling.open_quiz, 5),
        (stories.moving, 2),
        (stories.hiding, 1),
        (stories.ledger, 1),
        (stories.copying, 1),
    ),
}


def documents(world: World, split: Split, *, count: int | None = None, characters: int | None = None) -> Iterator[str]:
    """Documents of one to three paragraphs (lines) each, in an order that depends on the world and the split only.

    Args:
        world: what is true in them.
        split: train, calibration or evaluation.
        count: stop after so many documents.
        characters: stop with the document that reaches this total length, separators not counted.

    Raises:
        UsageError: `split` is unknown, or neither or both of the limits are given.
    """
    if split not in _SPLITS:
        raise UsageError(f"no split is called {split!r}", fix=f"use one of {', '.join(_SPLITS)}")
    if (count is None) == (characters is None):
        raise UsageError("documents need one limit", fix="give either count or characters")
    written = number = 0
    while (count is None or number < count) and (characters is None or written < characters):
        document = _document(Random(f"documents/{world.seed}/{split}/{number}"), world, split)
        number += 1
        written += len(document)
        yield document


def drills(world: World, kind: Drill, characters: int) -> Iterator[str]:
    """Paragraphs of the train split that hardly anything but their own beginning can predict, up to a total length.

    - copying: lists of words, said twice.
    - finding: also notes and moves, and what follows from them.

    Raises:
        UsageError: `kind` is unknown.
    """
    if kind not in _DRILLS:
        raise UsageError(f"no drill is called {kind!r}", fix=f"use one of {', '.join(_DRILLS)}")
    tellers, weights = zip(*_DRILLS[kind], strict=True)
    written = number = 0
    while written < characters:
        rng = Random(f"drills/{world.seed}/{kind}/{number}")
        paragraph = _paragraph(rng, world, rng.choice(world.people), rng.choices(tellers, weights)[0], "train")
        number += 1
        written += len(paragraph)
        yield paragraph


def _document(rng: Random, world: World, split: Split) -> str:
    person = rng.choice(world.people)
    tellers, weights = zip(*_TELLERS, strict=True)
    chosen = rng.choices(tellers, weights, k=rng.choice((1, 2, 2, 3)))
    return "\n".join(_paragraph(rng, world, person, teller, split) for teller in chosen)


def _paragraph(
    rng: Random, world: World, person: Person, teller: Callable[[Random, World, Person], str], split: Split
) -> str:
    while True:
        paragraph = teller(rng, world, person)
        if sha256(paragraph.encode()).digest()[0] % 4 in _SPLITS[split]:
            return paragraph


def questions(world: World, kind: Kind, count: int) -> Iterator[Choice]:
    """Multiple-choice items with four choices, the same for the same world and kind, whatever `count` is.

    - recall: a fact of the world, asked without help.
    - in_context: the recall items in the same order, each behind notes that state its fact among others.
    - multi_hop: somebody close to a person, and a fact about that somebody.
    - copy: a list of words to say again.
    - story: where a thing is after a story in which it may have been moved.

    Raises:
        UsageError: `kind` is unknown.
    """
    if kind not in get_args(Kind):
        raise UsageError(f"no question is called {kind!r}", fix=f"use one of {', '.join(get_args(Kind))}")
    order = Random(f"questions/{world.seed}").sample(world.facts, len(world.facts))
    make = {"recall": _recall, "in_context": _in_context, "multi_hop": _multi_hop, "copy": _copy, "story": _story}[kind]
    drawn_as = "recall" if kind == "in_context" else kind  # the same wrong choices
    for number in range(count):
        rng = Random(f"questions/{world.seed}/{drawn_as}/{number}")
        # The wording changes from one pass over the facts to the next.
        query, right, wrong = make(rng, world, order[number % len(order)], number // len(order))
        choices = [right, *wrong]
        rng.shuffle(choices)
        yield {"query": query, "choices": choices, "gold": choices.index(right)}


def cloze(item: Choice) -> Cloze:
    """The item without its wrong choices."""
    return {"context": item["query"], "continuation": item["choices"][item["gold"]]}


def _recall(rng: Random, world: World, fact: Fact, wording: int) -> tuple[str, str, list[str]]:
    query = telling.ending(world, fact, wording) if wording % 2 else _as_question(world, fact, wording)
    return query, telling.answer(fact), _other_answers(rng, world, fact)


def _in_context(rng: Random, world: World, fact: Fact, wording: int) -> tuple[str, str, list[str]]:
    query, right, wrong = _recall(rng, world, fact, wording)
    same_kind = [other for other in world.facts if other.relation == fact.relation and other.value != fact.value]
    told = [fact, *rng.sample(same_kind, 4)]
    rng.shuffle(told)
    return f"{telling.notes(rng, world, told)} {query}", right, wrong


def _as_question(world: World, fact: Fact, wording: int) -> str:
    return f"Question: {telling.question(world, fact, wording // 2)} Answer:"


def _other_answers(rng: Random, world: World, fact: Fact) -> list[str]:
    """Three wrong answers: values that the relation has for other subjects, never the subject itself."""
    values = {other.value for other in world.facts if other.relation == fact.relation} - {fact.value, fact.subject}
    if fact.relation == "sibling":
        female = world.person(fact.value).female
        values = {value for value in values if world.person(value).female == female}
    return [telling.answer(Fact(fact.subject, fact.relation, value)) for value in rng.sample(sorted(values), 3)]


def _multi_hop(rng: Random, world: World, fact: Fact, wording: int) -> tuple[str, str, list[str]]:
    person = rng.choice(world.people)
    lead, other = telling.lead_to(world, person, rng.choice(("sibling", "friend")))
    relation, verb = rng.choice(telling.CLAUSES)
    ending = f"who {verb}"
    known = Fact(other.name, relation, world.value(other.name, relation))
    right = f"{other.name}, {ending} {telling.answer(known)}"
    stranger = rng.choice([somebody for somebody in world.people if somebody not in (person, other)])
    theirs = Fact(stranger.name, relation, world.value(stranger.name, relation))
    wrong = [f"{stranger.name}, {ending} {telling.answer(theirs)}"]
    wrong += [f"{other.name}, {ending} {value}" for value in _other_answers(rng, world, known)[:2]]
    return lead, right, wrong


def _copy(rng: Random, world: World, fact: Fact, wording: int) -> tuple[str, str, list[str]]:
    """Wrong copies have two neighbours exchanged: each at another place, so that all have the same words."""
    query, right = stories.copied(rng)
    names = right.split()
    wrong = []
    for i in rng.sample(range(len(names) - 1), 3):
        wrong.append(" ".join([*names[:i], names[i + 1], names[i], *names[i + 2 :]]))
    return query, right, wrong


def _story(rng: Random, world: World, fact: Fact, wording: int) -> tuple[str, str, list[str]]:
    query, right, present = stories.hidden(rng, rng.choice(world.people))
    absent = [name for name in vocabulary.CONTAINERS if name not in (right, *present)]
    return query, right, [*present, rng.choice(absent)]


__all__ = [
    "RELATIONS",
    "Choice",
    "Cloze",
    "Drill",
    "Fact",
    "Kind",
    "Person",
    "Split",
    "World",
    "build_world",
    "cloze",
    "documents",
    "drills",
    "questions",
]
