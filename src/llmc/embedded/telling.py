"""Facts in English: single sentences, biographies, descriptions, and questions with their answers."""

from __future__ import annotations

from random import Random

from llmc.embedded import vocabulary as words
from llmc.embedded.facts import Fact, Person, World
from llmc.embedded.grammar import RELATIONS

# Relations that can be told in a clause behind `who`, and its verb.
CLAUSES = (("lives_in", "lives in"), ("works_as", "works as"), ("owns", "owns"), ("eats", "loves to eat"))


def with_article(noun: str) -> str:
    """`noun` behind a or an."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def answer(fact: Fact) -> str:
    """What completes an ending or answers a question about `fact`."""
    if fact.relation == "sibling":  # the surname would give it away
        return fact.value.split()[0]
    return with_article(fact.value) if RELATIONS[fact.relation].article else fact.value


def _fill(template: str, world: World, fact: Fact, subject: str) -> str:
    """`template` with its fields filled; the subject is called `subject` (its name, or a pronoun)."""
    female = RELATIONS[fact.relation].subject == "person" and world.person(fact.subject).female
    siblings = fact.relation == "sibling"
    text = template.format(
        s=subject,
        her="her" if female else "his",
        V=fact.value,
        A=with_article(fact.value),
        kin=kin_word(world.person(fact.value)) if siblings else "",
    )
    return text[0].upper() + text[1:]


def kin_word(person: Person) -> str:
    """What `person` is to a sibling."""
    return "sister" if person.female else "brother"


def pronoun(person: Person) -> str:
    """She or he, for the middle of a sentence."""
    return "she" if person.female else "he"


def possessive(person: Person) -> str:
    """Her or his."""
    return "her" if person.female else "his"


def ending(world: World, fact: Fact, number: int, subject: str | None = None) -> str:
    """A sentence about `fact` that stops before `answer(fact)`; `number` chooses the wording."""
    wordings = RELATIONS[fact.relation].endings
    return _fill(wordings[number % len(wordings)], world, fact, subject or fact.subject)


def question(world: World, fact: Fact, number: int) -> str:
    """A question whose answer is `answer(fact)`; `number` chooses the wording."""
    wordings = RELATIONS[fact.relation].questions
    return _fill(wordings[number % len(wordings)], world, fact, fact.subject)


def sentence(rng: Random, world: World, fact: Fact, subject: str | None = None) -> str:
    """One whole sentence about `fact`, in a random wording."""
    relation = RELATIONS[fact.relation]
    number = rng.randrange(len(relation.statements) + len(relation.endings))
    if number < len(relation.statements):
        return _fill(relation.statements[number], world, fact, subject or fact.subject)
    return f"{ending(world, fact, number, subject)} {answer(fact)}."


def biography(rng: Random, world: World, person: Person) -> str:
    """Three to five facts about one person, with small talk between them."""
    facts = rng.sample(world.about(person.name), rng.randint(3, 5))
    sentences = [sentence(rng, world, facts[0])]
    for fact in facts[1:]:
        sentences.append(sentence(rng, world, fact, rng.choice((None, person.first, person.first))))
        if rng.random() < 0.3:
            sentences.append(small_talk(rng, person))
    return " ".join(sentences)


def small_talk(rng: Random, person: Person) -> str:
    """A sentence that says nothing lasting about `person`."""
    forms = (
        f"{rng.choice(words.TIMES)} {person.first} was {rng.choice(words.MOODS)}, because {rng.choice(words.WEATHER)}.",
        f"{rng.choice(words.TIMES)} {person.first} went to the {rng.choice(words.PLACES)} {rng.choice(words.MANNERS)}.",
        f"{rng.choice(words.TIMES)} {person.first} found "
        f"{with_article(rng.choice(words.COLOURS))} {rng.choice(words.ITEMS)}.",
        f"Some say {person.first} is often {rng.choice(words.MOODS)} and sometimes {rng.choice(words.MOODS)}.",
    )
    return rng.choice(forms)


def relatives(rng: Random, world: World, person: Person) -> str:
    """Two facts in one sentence: somebody close to `person`, and one thing about them."""
    sentences = []
    for relation in rng.sample(("sibling", "friend"), 2):
        lead, other = lead_to(world, person, relation)
        sentences.append(f"{lead} {other.name}, who {clause(rng, world, other)}.")
        if rng.random() < 0.4:
            sentences.append(small_talk(rng, other))
    return " ".join(sentences)


def lead_to(world: World, person: Person, relation: str) -> tuple[str, Person]:
    """The start of a sentence that goes on with the name of the sibling or friend, and that person."""
    other = world.person(world.value(person.name, relation))
    called = kin_word(other) if relation == "sibling" else "best friend"
    return f"The {called} of {person.name} is", other


def clause(rng: Random, world: World, person: Person) -> str:
    """What can follow `who` in a sentence about `person`."""
    relation, verb = rng.choice(CLAUSES)
    return f"{verb} {answer(Fact(person.name, relation, world.value(person.name, relation)))}"


def description(rng: Random, world: World, person: Person) -> str:
    """Two or three facts about a town, a pet or an event."""
    subject = rng.choice((*world.towns, *world.pets, *world.events))
    facts = list(world.about(subject))
    rng.shuffle(facts)
    sentences = [sentence(rng, world, fact) for fact in facts]
    residents = [fact for fact in world.facts if fact.relation == "lives_in" and fact.value == subject]
    chosen = rng.sample(residents, 2) if residents else [rng.choice(world.about(person.name))]
    return " ".join([*sentences, *(sentence(rng, world, fact) for fact in chosen)])


def quiz(rng: Random, world: World, person: Person) -> str:
    """Questions and answers about facts that the reader has to know."""
    facts = [rng.choice(world.about(person.name)), *rng.sample(world.facts, 3)]
    return " ".join(asked(world, fact, rng.randrange(4)) for fact in facts)


def asked(world: World, fact: Fact, number: int) -> str:
    """A question about `fact` with its answer."""
    return f"Question: {question(world, fact, number)} Answer: {answer(fact)}."


def open_quiz(rng: Random, world: World, person: Person) -> str:
    """Notes of one kind about strangers and others, then questions that only the notes can answer.

    The values are drawn: what the notes say need not be true elsewhere.
    """
    imagined, facts = _imagined(rng, world)
    told = notes(rng, imagined, facts)
    rng.shuffle(facts)
    return " ".join([told, *(_asked_somehow(rng, imagined, fact) for fact in facts)])


def _imagined(rng: Random, world: World) -> tuple[World, list[Fact]]:
    """Facts of one relation that are drawn here, and a world in which their subjects live."""
    relation = rng.choice(list(RELATIONS))
    named, imagined = _noted(rng, world, relation, rng.randint(3, 5))
    values = {fact.value for fact in world.facts if fact.relation == relation} - set(named)
    drawn = rng.sample(sorted(values), len(named))
    return imagined, [Fact(name, relation, value) for name, value in zip(named, drawn, strict=True)]


def _noted(rng: Random, world: World, relation: str, count: int) -> tuple[list[str], World]:
    """Subjects for notes, and a world without facts in which they and everybody else live."""
    named = {"town": world.towns, "pet": world.pets, "event": world.events}.get(RELATIONS[relation].subject)
    if named is not None:
        return rng.sample(named, count), world
    strangers = [Person(name, "", True) for name in words.STRANGE_WOMEN]
    strangers += [Person(name, "", False) for name in words.STRANGE_MEN]
    pool = rng.choice((strangers, world.people, (*strangers, *world.people)))
    imagined = World(world.seed, (*strangers, *world.people), world.towns, world.pets, world.events, ())
    return [somebody.name for somebody in rng.sample(pool, count)], imagined


def _asked_somehow(rng: Random, world: World, fact: Fact) -> str:
    """As a question with its answer, or as a sentence that ends with it."""
    number = rng.randrange(4)
    return asked(world, fact, number) if rng.random() < 0.7 else f"{ending(world, fact, number)} {answer(fact)}."


def notes(rng: Random, world: World, facts: list[Fact]) -> str:
    """Facts as sentences that end with their answers."""
    return "Notes: " + " ".join(f"{ending(world, fact, rng.randrange(4))} {answer(fact)}." for fact in facts)
