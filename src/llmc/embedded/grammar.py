"""How each kind of fact is told and asked.

Fields of a template: `{s}` the subject, `{she}` and `{her}` its pronouns, `{V}` the value, `{A}` the value with its
article, `{kin}` sister or brother. Each template of `ending` stops where the value begins, so that it can be asked.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Relation:
    """Wordings of one kind of fact.

    Args:
        subject: what it is said of: person, pet, event or town.
        statements: whole sentences.
        endings: sentences without their last words, which are the value (with `article`, the value and its article).
        questions: asked in full; the answer is what completes an ending.
        article: whether the value takes a or an.
    """

    subject: str
    statements: tuple[str, ...]
    endings: tuple[str, ...]
    questions: tuple[str, ...]
    article: bool = False


RELATIONS: dict[str, Relation] = {
    "lives_in": Relation(
        "person",
        (
            "{s} has a small house in {V}, close to the road.",
            "In {V} everybody knows {s}.",
            "{s} came to {V} as a child and never left.",
            "{V} is where {s} feels at home.",
            "{s} rents two rooms in {V}.",
        ),
        ("{s} lives in", "{s} has always lived in", "The home of {s} is in", "If you look for {s}, go to"),
        ("Where does {s} live?", "In which town is the home of {s}?"),
    ),
    "works_as": Relation(
        "person",
        (
            "{s} is {A} and likes the work.",
            "For many years {s} has been {A}.",
            "People call {s} the best {V} around.",
            "Being {A} suits {s} well.",
            "{s} learned the trade of {A} from an uncle.",
        ),
        ("{s} works as", "{s} earns {her} bread as", "By trade {s} is"),
        ("What is the job of {s}?", "What does {s} work as?"),
        article=True,
    ),
    "owns": Relation(
        "person",
        (
            "{s} would never sell {her} {V}.",
            "The {V} of {s} is known to all the neighbours.",
            "On the shelf of {s} stands {A}.",
            "{s} takes good care of {her} {V}.",
            "The finest thing in the house of {s} is {A}.",
        ),
        ("{s} owns", "The thing {s} would never give away is", "From {her} grandmother {s} got"),
        ("What does {s} own?", "Which old thing belongs to {s}?"),
        article=True,
    ),
    "eats": Relation(
        "person",
        (
            "{s} could eat {V} every day.",
            "There is always {V} on the table of {s}.",
            "{V} is what {s} cooks for guests.",
            "Nothing tastes better to {s} than {V}, warm or cold.",
        ),
        ("{s} loves to eat", "The favourite dish of {s} is", "On Sundays {s} always has"),
        ("What does {s} love to eat?", "What is the favourite dish of {s}?"),
    ),
    "enjoys": Relation(
        "person",
        (
            "{s} spends the evenings with {V}.",
            "{V} keeps {s} busy all winter.",
            "{s} is better at {V} than anybody else.",
            "When there is time, {V} comes first for {s}.",
        ),
        ("{s} enjoys", "The hobby of {s} is", "In {her} free time {s} likes"),
        ("What is the hobby of {s}?", "What does {s} enjoy?"),
    ),
    "sibling": Relation(
        "person",
        (
            "{s} has a {kin} called {V}.",
            "{V} is the {kin} of {s}.",
            "{s} and {her} {kin} {V} look alike.",
            "{s} writes to {her} {kin} {V} every month.",
        ),
        ("The {kin} of {s} is", "{s} grew up with {her} {kin},"),
        ("Who is the {kin} of {s}?", "What is the name of the {kin} of {s}?"),
    ),
    "friend": Relation(
        "person",
        (
            "{s} and {V} have been friends since school.",
            "{s} trusts nobody as much as {V}.",
            "{V} and {s} meet every Friday.",
            "{s} tells everything to {her} friend {V}.",
        ),
        ("The best friend of {s} is", "{s} spends most holidays with"),
        ("Who is the best friend of {s}?", "With whom does {s} spend the holidays?"),
    ),
    "owner": Relation(
        "pet",
        (
            "{V} has had {s} for years.",
            "{s} follows {V} everywhere.",
            "{V} is the owner of {s}.",
            "{s} sleeps at the feet of {V}.",
        ),
        ("{s} belongs to", "The owner of {s} is"),
        ("Who is the owner of {s}?", "To whom does {s} belong?"),
    ),
    "kind": Relation(
        "pet",
        (
            "{s} is {A} with a mind of its own.",
            "No other {V} is as clever as {s}.",
            "The {V} called {s} is often seen in the street.",
        ),
        ("{s} is", "The animal called {s} is"),
        ("What kind of animal is {s}?",),
        article=True,
    ),
    "held_in": Relation(
        "event",
        (
            "Every year {V} gets ready for the {s}.",
            "For the {s} people travel to {V} from far away.",
            "The streets of {V} are full on the day of the {s}.",
        ),
        ("The {s} takes place in", "The town of the {s} is"),
        ("Where does the {s} take place?", "Which town has the {s}?"),
    ),
    "held_during": Relation(
        "event",
        (
            "In {V} it is time for the {s}.",
            "Nobody plans anything else for {V}, because of the {s}.",
            "Each {V} the {s} brings everyone together.",
        ),
        ("The {s} is always in", "The month of the {s} is"),
        ("In which month is the {s}?",),
    ),
    "known_for": Relation(
        "town",
        (
            "Traders come to {s} to buy {V}.",
            "The {V} from {s} can be bought everywhere.",
            "Half of the people in {s} make {V}.",
        ),
        ("{s} is known for its", "The pride of {s} is its"),
        ("What is {s} known for?", "What do people make in {s}?"),
    ),
    "landmark": Relation(
        "town",
        (
            "The {V} of {s} can be seen from far away.",
            "Children in {s} play near the {V}.",
            "Travellers stop in {s} to see the {V}.",
        ),
        ("In the middle of {s} there is", "The first thing one sees in {s} is"),
        ("What can be seen in the middle of {s}?",),
        article=True,
    ),
}
