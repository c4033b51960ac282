"""Stories that need their context: what happens in them is true there only, and is asked for at the end."""

from __future__ import annotations

from random import Random

from llmc.embedded import vocabulary as words
from llmc.embedded.facts import Person, World
from llmc.embedded.telling import possessive, pronoun, with_article


def stranger(rng: Random, other_than: Person | None = None) -> Person:
    """Somebody about whom nothing is known, with another first name than `other_than`."""
    female = rng.random() < 0.5
    pool = words.STRANGE_WOMEN if female else words.STRANGE_MEN
    name = rng.choice([name for name in pool if other_than is None or name != other_than.first])
    return Person(name, "", female)


def _cast(rng: Random, person: Person) -> tuple[Person, Person]:
    """Two actors: `person` and a stranger, or two strangers."""
    first = person if rng.random() < 0.5 else stranger(rng)
    return first, stranger(rng, first)


def _thing(rng: Random) -> str:
    return f"{rng.choice(words.COLOURS)} {rng.choice(words.ITEMS)}"


def _opening(rng: Random) -> str:
    return f"{rng.choice(words.TIMES)} {rng.choice(words.WEATHER)}."


def hidden(rng: Random, person: Person) -> tuple[str, str, tuple[str, ...]]:
    """Somebody puts a thing somewhere, and perhaps somebody else moves it.

    Returns:
        The story up to the last word, that word (a container), and the other containers of the story.
    """
    one, two = _cast(rng, person)
    thing, other = rng.sample(words.ITEMS, 2)
    first, second, third = rng.sample(words.CONTAINERS, 3)
    lines = [_opening(rng)]
    puts = [f"{one.first} put the {thing} in the {first}.", f"{two.first} put the {other} in the {third}."]
    rng.shuffle(puts)
    lines += [*puts, f"Then {one.first} went to the {rng.choice(words.PLACES)} {rng.choice(words.MANNERS)}."]
    moved = rng.random() < 0.5
    if moved:
        lines.append(f"While {pronoun(one)} was away, {two.first} moved the {thing} to the {second}.")
    else:
        lines.append(
            f"While {pronoun(one)} was away, {two.first} looked at the {second} and felt {rng.choice(words.MOODS)}."
        )
    asked_other = rng.random() < 0.25
    lines.append(f"So the {other if asked_other else thing} is now in the")
    last = third if asked_other else (second if moved else first)
    return " ".join(lines), last, tuple(name for name in (first, second, third) if name != last)


def hiding(rng: Random, world: World, person: Person) -> str:
    """A `hidden` story with its end."""
    story, last, _ = hidden(rng, person)
    tails = (".", f", and nobody was {rng.choice(words.MOODS)} about it.", f". {_opening(rng)}")
    return f"{story} {last}{rng.choice(tails)}"


def moving(rng: Random, world: World, person: Person) -> str:
    """Things are put somewhere, some are moved, and in the end it is said of each where it is."""
    one, two = _cast(rng, person)
    things = rng.sample(words.ITEMS, rng.randint(2, 4))
    free = rng.sample(words.CONTAINERS, len(words.CONTAINERS))
    place = {thing: free.pop() for thing in things}
    lines = [f"{rng.choice((one, two)).first} put the {thing} in the {place[thing]}." for thing in things]
    for thing in rng.sample(things, rng.randint(1, len(things))):
        place[thing] = free.pop()
        lines.append(f"{rng.choice((one, two)).first} moved the {thing} to the {place[thing]}.")
    rng.shuffle(things)
    return " ".join([*lines, *(f"So the {thing} is now in the {place[thing]}." for thing in things)])


def lending(rng: Random, world: World, person: Person) -> str:
    """A thing passes from hand to hand."""
    one, two = _cast(rng, person)
    three = rng.choice(world.people)
    thing = world.value(person.name, "owns") if one is person else _thing(rng)
    lines = [
        _opening(rng),
        f"{one.first} had {with_article(thing)} with {'her' if one.female else 'him'}.",
        f"{one.first} gave it to {two.first}, and {two.first} was {rng.choice(words.MOODS)}.",
    ]
    last = two
    if rng.random() < 0.5 and three is not one:
        lines.append(f"Later {two.first} met {three.name} at the {rng.choice(words.PLACES)} and gave it away.")
        last = three
    lines.append(f"Now {last.first} has the {thing}.")
    if rng.random() < 0.5:
        lines.append(
            f"{one.first} asked for it {rng.choice(words.MANNERS)}, "
            f"but {last.first} had gone to the {rng.choice(words.PLACES)}."
        )
    return " ".join(lines)


def journey(rng: Random, world: World, person: Person) -> str:
    """From home through two towns, and back to where the traveller lives."""
    home = world.value(person.name, "lives_in")
    stops = rng.sample([town for town in world.towns if town != home], 2)
    bought = [rng.choice((world.value(stop, "known_for"), with_article(_thing(rng)))) for stop in stops]
    lines = [
        f"{rng.choice(words.TIMES)} {person.name} left {home}, and {rng.choice(words.WEATHER)}.",
        f"First {person.first} walked to {stops[0]}, where {pronoun(person)} bought {bought[0]}.",
        f"From {stops[0]} the road went on to {stops[1]}.",
        f"There {pronoun(person)} bought {bought[1]} and saw the {world.value(stops[1], 'landmark')}.",
        f"At the end {person.first} came home to {home} with {bought[0]} from {stops[0]} "
        f"and {bought[1]} from {stops[1]}.",
    ]
    return " ".join(lines)


def shopping(rng: Random, world: World, person: Person) -> str:
    """A list, and the same list again."""
    one, two = _cast(rng, person)
    wanted = rng.sample(words.ITEMS, rng.randint(3, 5))
    listed = ", ".join(f"the {item}" for item in wanted[:-1]) + f" and the {wanted[-1]}"
    lost = rng.choice(wanted)
    lines = [
        f"{two.first} asked {one.first} to bring {listed}.",
        f"{_opening(rng)} {one.first} went to the {rng.choice(words.PLACES)} {rng.choice(words.MANNERS)}.",
        f'"Do you have everything?" asked {two.first}. "I have {listed}," said {one.first}.',
    ]
    if rng.random() < 0.5:
        lines.append(f"But on the way home {pronoun(one)} had lost the {lost}, so the {lost} was missing.")
    return " ".join(lines)


def counting(rng: Random, world: World, person: Person) -> str:
    """Small sums in words."""
    one, two = _cast(rng, person)
    item = rng.choice(words.ITEMS)
    have, change = rng.randint(2, 7), rng.randint(1, 5)
    plus = change > have or rng.random() < 0.5
    left = have + change if plus else have - change
    deed = (
        f"{two.first} brought {words.NUMBERS[change]} more"
        if plus
        else f"{two.first} took {words.NUMBERS[change]} of them away"
    )
    noun = item if left == 1 else f"{item}s"
    return (
        f"{_opening(rng)} {one.first} had {words.NUMBERS[have]} {item}s "
        f"in {possessive(one)} {rng.choice(words.CONTAINERS)}. "
        f"At the {rng.choice(words.PLACES)} {deed}. After that {one.first} had {words.NUMBERS[left]} {noun}."
    )


def festival(rng: Random, world: World, person: Person) -> str:
    """A day at a yearly event, with winners who won in this story only."""
    event = rng.choice(world.events)
    first, second = rng.sample(world.people, 2)
    prize = _thing(rng)
    lines = [
        f"In {world.value(event, 'held_during')} {person.first} travelled "
        f"to {world.value(event, 'held_in')} for the {event}.",
        f"{rng.choice(words.WEATHER).capitalize()}, and everybody was {rng.choice(words.MOODS)}.",
        f"{first.name} came first and {second.name} came second.",
        f"{person.first} gave {with_article(prize)} to the winner.",
        f"That is how {first.first} got the {prize}, while {second.first} went home {rng.choice(words.MANNERS)}.",
    ]
    return " ".join(lines)


def copied(rng: Random) -> tuple[str, str]:
    """A list of words to say again: what comes before the copy, and the copy."""
    chosen = " ".join(rng.sample(_LISTED, rng.randint(4, 8)))
    return f"Say it again: {chosen}. Again:", chosen


def copying(rng: Random, world: World, person: Person) -> str:
    """Two or three lists, each said twice."""
    return " ".join(f"{before} {copy}." for before, copy in (copied(rng) for _ in range(rng.randint(2, 3))))


def ledger(rng: Random, world: World, person: Person) -> str:
    """Pairs of words, and the same pairs in another order: which belongs to which is drawn for this paragraph."""
    count = rng.randint(5, 9)
    pairs = [
        f"{left} {right}" for left, right in zip(rng.sample(_LISTED, count), rng.sample(_LISTED, count), strict=True)
    ]
    again = rng.sample(pairs, count)
    return f"Ledger: {', '.join(pairs)}. Checked: {', '.join(again)}."


# Words of all kinds: in so large a pool few lists of a window share a word.
_LISTED = sorted(
    {
        *(*words.ITEMS, *words.CONTAINERS, *words.COLOURS, *words.MOODS, *words.PLACES, *words.NUMBERS),
        *(*words.JOBS, *words.ANIMALS, *words.MATERIALS, *words.THINGS, *words.MONTHS),
        *(*words.STRANGE_WOMEN, *words.STRANGE_MEN, *words.WOMEN, *words.MEN, *words.PETS),
    }
)
