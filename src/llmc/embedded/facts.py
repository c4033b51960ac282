"""Who lives in the small world: entities, and the facts that hold between them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from random import Random

from llmc.embedded import vocabulary as words


@dataclass(frozen=True)
class Person:
    """Somebody with a name; a stranger has no surname and no facts."""

    first: str
    surname: str
    female: bool

    @property
    def name(self) -> str:
        return f"{self.first} {self.surname}" if self.surname else self.first


@dataclass(frozen=True)
class Fact:
    """`relation` (a key of `grammar.RELATIONS`) holds between `subject` and `value`, both names."""

    subject: str
    relation: str
    value: str


@dataclass(frozen=True)
class World:
    """Everything that is true. `facts` is in a fixed order; names are unique over all kinds of entities."""

    seed: int
    people: tuple[Person, ...]
    towns: tuple[str, ...]
    pets: tuple[str, ...]
    events: tuple[str, ...]
    facts: tuple[Fact, ...]

    @property
    def entities(self) -> tuple[str, ...]:
        """Every name that facts are about."""
        return (*(person.name for person in self.people), *self.towns, *self.pets, *self.events)

    def about(self, subject: str) -> tuple[Fact, ...]:
        """The facts whose subject is `subject`."""
        return self._about.get(subject, ())

    def value(self, subject: str, relation: str) -> str:
        """The value of one fact.

        Raises:
            KeyError: no such fact.
        """
        return self._values[subject, relation]

    def person(self, name: str) -> Person:
        """The person with this full name.

        Raises:
            KeyError: nobody is called so.
        """
        return self._by_name[name]

    @cached_property
    def _values(self) -> dict[tuple[str, str], str]:
        return {(fact.subject, fact.relation): fact.value for fact in self.facts}

    @cached_property
    def _about(self) -> dict[str, tuple[Fact, ...]]:
        found: dict[str, tuple[Fact, ...]] = {}
        for fact in self.facts:
            found[fact.subject] = (*found.get(fact.subject, ()), fact)
        return found

    @cached_property
    def _by_name(self) -> dict[str, Person]:
        return {person.name: person for person in self.people}


def build_world(seed: int = 0) -> World:
    """The world of `seed`: 48 people in 24 pairs of siblings, 12 towns, 20 pets and 10 yearly events."""
    rng = Random(f"world/{seed}")
    people = _people(rng)
    facts = [*_facts_of_people(rng, people), *_facts_of_the_rest(rng, people)]
    return World(seed, people, words.TOWNS, words.PETS, words.EVENTS, tuple(facts))


def _people(rng: Random) -> tuple[Person, ...]:
    """Neighbours in the tuple (0 and 1, 2 and 3, ...) share a surname: they are siblings."""
    given = [(first, True) for first in words.WOMEN] + [(first, False) for first in words.MEN]
    rng.shuffle(given)
    return tuple(Person(first, words.SURNAMES[i // 2], female) for i, (first, female) in enumerate(given))


def _facts_of_people(rng: Random, people: tuple[Person, ...]) -> list[Fact]:
    names = [person.name for person in people]
    owned = [f"{material} {thing}" for material in words.MATERIALS for thing in words.THINGS]
    pools: dict[str, tuple[str, ...] | list[str]] = {
        "lives_in": words.TOWNS,
        "works_as": words.JOBS,
        "owns": owned,
        "eats": words.FOODS,
        "enjoys": words.HOBBIES,
    }
    facts = []
    for relation, pool in pools.items():
        values = _spread(rng, pool, len(names))
        facts += [Fact(name, relation, value) for name, value in zip(names, values, strict=True)]
    facts += [Fact(name, "sibling", names[i ^ 1]) for i, name in enumerate(names)]
    return facts + _friendships(rng, names)


def _friendships(rng: Random, names: list[str]) -> list[Fact]:
    """Mutual friends, never siblings: the first of a family is paired with the first of another; so are the seconds."""
    facts = []
    for members in (names[0::2], names[1::2]):
        order = rng.sample(members, len(members))
        for one, other in zip(order[0::2], order[1::2], strict=True):
            facts += [Fact(one, "friend", other), Fact(other, "friend", one)]
    return facts


def _facts_of_the_rest(rng: Random, people: tuple[Person, ...]) -> list[Fact]:
    owners = rng.sample([person.name for person in people], len(words.PETS))
    columns = (
        ("owner", words.PETS, owners),
        ("kind", words.PETS, _spread(rng, words.ANIMALS, len(words.PETS))),
        ("held_in", words.EVENTS, rng.sample(words.TOWNS, len(words.EVENTS))),
        ("held_during", words.EVENTS, _spread(rng, words.MONTHS, len(words.EVENTS))),
        ("known_for", words.TOWNS, _spread(rng, words.PRODUCTS, len(words.TOWNS))),
        ("landmark", words.TOWNS, _spread(rng, words.LANDMARKS, len(words.TOWNS))),
    )
    return [
        Fact(subject, relation, value)
        for relation, subjects, values in columns
        for subject, value in zip(subjects, values, strict=True)
    ]


def _spread(rng: Random, pool: tuple[str, ...] | list[str], count: int) -> list[str]:
    """`count` values in random order, each member of `pool` as often as any other, give or take one."""
    values = [pool[i % len(pool)] for i in range(count)]
    rng.shuffle(values)
    return values
