"""The words the small world is made of: invented names, and plain English for everything else."""

from __future__ import annotations

WOMEN = (
    "Mara", "Odile", "Tessa", "Brona", "Lise", "Petra", "Nell", "Ines", "Greta", "Yara", "Dora", "Sunna",
    "Cilla", "Hanne", "Roza", "Vera", "Elin", "Faye", "Juno", "Marit", "Noor", "Alba", "Kaya", "Wren",
)  # fmt: skip
MEN = (
    "Pim", "Anton", "Bram", "Casper", "Dirk", "Emil", "Florin", "Gorm", "Hugo", "Ivo", "Jarl", "Klaas",
    "Lars", "Milo", "Nico", "Otto", "Pavel", "Quint", "Rolf", "Stellan", "Tomas", "Ugo", "Viktor", "Willem",
)  # fmt: skip
SURNAMES = (
    "Tolven", "Harrow", "Quill", "Marsh", "Ostrander", "Pell", "Vane", "Birch", "Lockhart", "Sorrel",
    "Crane", "Dunmore",
    "Fennick", "Grell", "Hollis", "Ives", "Jessop", "Kettering", "Lund", "Moss", "Norling", "Oake", "Pryor", "Rusk",
)  # fmt: skip
# Strangers live in one story only: nothing about them can be known beforehand.
STRANGE_WOMEN = ("Anna", "Clara", "Edith", "Flora", "Helen", "Iris", "Joan", "Lucy", "Molly", "Rose")
STRANGE_MEN = ("Adam", "Ben", "Carl", "David", "Frank", "George", "Henry", "Jack", "Paul", "Simon")

TOWNS = (
    "Brackenford", "Saltmere", "Oldwick", "Thornbury", "Eastholm", "Grayling",
    "Fairhaven", "Millbrook", "Stonecross", "Ravenhill", "Longdale", "Whitsand",
)  # fmt: skip
PRODUCTS = (
    "honey", "cheese", "glass", "rope", "wool", "salt", "candles", "pottery", "cider", "paper", "tin bells", "barrels",
)  # fmt: skip
LANDMARKS = (
    "lighthouse", "clock tower", "stone bridge", "windmill", "ruined castle", "chapel",
    "market hall", "hot spring", "waterfall", "giant oak", "iron gate", "marble statue",
)  # fmt: skip
JOBS = (
    "baker", "blacksmith", "carpenter", "doctor", "teacher", "fisher", "gardener", "tailor",
    "potter", "miller", "weaver", "sailor", "painter", "shepherd", "cobbler", "printer",
    "mason", "beekeeper", "ferryman", "cook", "librarian", "watchmaker", "glassblower", "postman",
)  # fmt: skip
MATERIALS = ("copper", "wooden", "silver", "glass", "leather", "brass", "ivory", "velvet")
THINGS = ("kettle", "lantern", "violin", "compass", "mirror", "umbrella")
FOODS = (
    "onion soup", "plum cake", "fried trout", "barley bread", "apple pie", "goat cheese", "roast duck", "pea stew",
    "honey buns", "pickled eggs", "mushroom rice", "smoked eel", "lentil soup", "cherry jam",
    "potato salad", "oat porridge",
)  # fmt: skip
HOBBIES = (
    "chess", "carving spoons", "sketching birds", "rowing", "singing", "collecting shells", "baking", "star gazing",
    "juggling", "knitting", "flying kites", "skating", "writing poems", "hiking", "dancing", "pressing flowers",
)  # fmt: skip
PETS = (
    "Biscuit", "Pepper", "Button", "Clover", "Smoke", "Bramble", "Ginger", "Pickle", "Cobble", "Nutmeg",
    "Rusty", "Thimble", "Velcro", "Waffle", "Ziggy", "Sable", "Tinker", "Pebble", "Jasper", "Maple",
)  # fmt: skip
ANIMALS = ("cat", "dog", "goat", "parrot", "pony", "rabbit", "goose", "ferret", "donkey", "turtle")
EVENTS = (
    "Lantern Fair", "Harvest Supper", "Boat Race", "Snow Ball", "Kite Day",
    "Cheese Roll", "Bell Parade", "Night Market", "Wool Show", "Spring Dance",
)  # fmt: skip
MONTHS = ("January", "March", "April", "May", "June", "July", "August", "September", "October", "December")

CONTAINERS = (
    "drawer", "basket", "cupboard", "trunk", "barrel", "box", "jar", "sack", "chest", "bucket", "cabinet", "crate",
)  # fmt: skip
PLACES = (
    "harbour", "market", "mill", "well", "bakery", "orchard", "school", "stable", "forge", "library", "river", "inn",
)  # fmt: skip
ITEMS = (
    "apple", "key", "letter", "coin", "ribbon", "candle", "map", "spoon", "book", "ring",
    "hat", "rope", "bell", "hammer", "feather", "button", "pear", "bottle", "needle", "ladder",
)  # fmt: skip
COLOURS = ("red", "blue", "green", "yellow", "white", "black", "brown", "grey")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")

TIMES = (
    "One morning", "One evening", "On a cold day", "Early on Monday", "Late on Friday", "Last week", "After lunch",
    "Before sunrise", "One summer night", "On the first day of spring", "Yesterday", "Some years ago",
)  # fmt: skip
WEATHER = (
    "it was raining", "the sun was shining", "the wind was strong", "there was fog over the fields", "snow was falling",
    "the sky was clear", "the streets were empty", "the bells were ringing", "the air smelled of smoke",
    "it was very quiet",
)  # fmt: skip
MOODS = ("happy", "tired", "curious", "worried", "proud", "hungry", "patient", "cheerful", "nervous", "calm")
MANNERS = ("slowly", "quickly", "with a smile", "without a word", "as usual", "in a hurry", "very carefully", "at last")
