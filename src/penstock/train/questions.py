"""Questions about the corpus' entries, to train on and, in other words, to be tested with.

In: a corpus and a seed; out: exchanges whose answer is exactly the entry's first sentence, and probes.
The held-out phrasings are never trained on, in whatever spelling.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from penstock.evaluate.questions import Probe
from penstock.train.chance import draw, happens, pick, shuffled
from penstock.train.chats import Exchange
from penstock.train.corpus import Corpus, Entry

# {name} is spelled in several ways, {noun} is what the entry is.  There are many, and words of the held-out phrasings
# are among them: from few, a model learns that an unknown phrasing means a question to decline.
TRAINING_PHRASINGS = (
    "What does {name} do?",
    "what does {name} do",
    "What is {name}?",
    "what is {name}",
    "What's {name}?",
    "What is {name} for?",
    "What is {name} used for?",
    "What is the purpose of {name}?",
    "What is the point of {name}?",
    "What is the meaning of {name}?",
    "What happens when I call {name}?",
    "What does the {noun} {name} do?",
    "What kind of thing is {name}?",
    "Explain {name}.",
    "Explain {name} to me.",
    "Briefly explain {name}",
    "Explain what {name} does.",
    "Could you explain {name}?",
    "Can you explain what {name} is?",
    "Please explain the {noun} {name}.",
    "Describe {name}.",
    "Describe {name} in a few words.",
    "describe what {name} does",
    "Give me a short description of {name}.",
    "Give a one-line summary of {name}.",
    "Summarise what {name} does.",
    "Please sum up {name} for me.",
    "Summary of {name}, please.",
    "In one sentence, what is {name}?",
    "In a single sentence: what does {name} do?",
    "Tell me about {name}.",
    "tell me what {name} does",
    "Can you tell me what {name} does?",
    "Could you tell me what {name} is for?",
    "Please tell me what the {noun} {name} is.",
    "How would you describe {name}?",
    "How would you put {name} into words?",
    "{name}",
    "{name}?",
    "help {name}",
    "help({name})",
    "define {name}",
    "Define {name}.",
    "docs {name}",
    "In Python, what does {name} do?",
    "What does {name} do in Python?",
    "Python: {name}",
    "I do not understand {name}. What does it do?",
    "I found {name} in a program. What does it do?",
    "I am reading code that uses {name}. What is that?",
    "Somebody used {name} in a script; what for?",
    "There is a call of {name} here. What does it do?",
    "My code has {name} in it. Can you explain it?",
    "I just saw {name}. What does it mean?",
    "We use {name} at work; what does it do?",
    "Why would one use {name}?",
    "When would I use {name}?",
    "I need to know what {name} does.",
    "I would like to know what {name} is.",
    "I have a question about {name}: what does it do?",
    "Remind me what {name} does.",
    "Do you know what {name} does?",
    "Do you know {name}?",
    "What can you tell me about {name}?",
    "Look up {name} for me.",
    "Teach me about {name}.",
    "What do the docs say about {name}?",
    "Quote the documentation of {name}.",
    "How is {name} documented?",
    "And {name}?",
)
HELD_OUT_PHRASINGS = (
    "Could you explain to me what {name} does?",
    "Please summarise {name} in one sentence.",
    "I came across {name} in some code; what is it?",
)
_OPENERS = (
    "Hello. ",
    "Hi! ",
    "Please help me. ",
    "Quick question: ",
    "A question: ",
    "I am new to Python. ",
    "One more thing. ",
    "Thanks! ",
    "OK. ",
    "I have a question. ",
    "Next one. ",
)
_OPENER_SHARE = 0.2
_SPELLINGS = ("full",) * 5 + ("parentheses",) * 2 + ("quoted",) + ("short",) * 3 + ("of module",)


def training_questions(corpus: Corpus, per_entry: int, seed: int) -> Iterator[Exchange]:
    """Every entry in ``per_entry`` of the training phrasings, drawn for it, its name spelled as the draw says.

    A short name ("dumps", "deque.append") stands only for an entry that no other name could be shortened to.
    """
    ambiguous = {ending for ending, count in name_endings(corpus).items() if count > 1}
    for entry in corpus.entries:
        short = short_name(entry)
        phrasings = shuffled(TRAINING_PHRASINGS, seed, "phrasing", entry.qualified_name)
        for number in range(per_entry):
            key = (entry.qualified_name, number)
            name = spelled(entry.qualified_name, entry.kind, seed, *key, short=None if short in ambiguous else short)
            phrasing = phrasings[number % len(phrasings)]
            yield Exchange(asked(phrasing, name, entry.kind, seed, *key), entry.first_sentence)


def asked(phrasing: str, name: str, noun: str, seed: int, *key: str | int) -> str:
    """The question that ``phrasing`` makes, at times after an opening word or two."""
    question = phrasing.format(name=name, noun=noun)
    return pick(_OPENERS, seed, "opener", *key) + question if happens(_OPENER_SHARE, seed, "opens", *key) else question


def held_out_probes(corpus: Corpus) -> list[Probe]:
    """Every callable in the three held-out phrasings, with its qualified name."""
    return [
        Probe(
            subject=entry.qualified_name,
            phrasing=phrasing,
            question=phrasing.format(name=entry.qualified_name),
            expected=entry.first_sentence,
        )
        for entry in corpus.callables
        for phrasing in HELD_OUT_PHRASINGS
    ]


def sample_probes(probes: list[Probe], num_subjects: int, seed: int) -> list[Probe]:
    """The probes of ``num_subjects`` subjects drawn from ``seed``, for a measurement in less time."""
    subjects = sorted({probe.subject for probe in probes}, key=lambda subject: draw(seed, "probe", subject))
    chosen = set(subjects[:num_subjects])
    return [probe for probe in probes if probe.subject in chosen]


def short_name(entry: Entry) -> str:
    """ "json.dumps" -> "dumps", "collections.deque.append" -> "deque.append"; a module keeps its name."""
    parts = entry.qualified_name.split(".")
    return ".".join(parts[-2:] if entry.kind == "method" else parts[-1:])


def name_endings(corpus: Corpus) -> Counter[str]:
    """Every known name, its last part and its last two parts -> how many known names end so."""
    return Counter(
        ending
        for name in corpus.known_names
        for ending in {name.rpartition(".")[2], ".".join(name.split(".")[-2:]), name}
    )


def spelled(name: str, kind: str, seed: int, *key: str | int, short: str | None) -> str:
    """``name`` as somebody might write it: in full, called, quoted, shortened to ``short``, or after its module."""
    spelling = pick(_SPELLINGS, seed, "spelling", *key)
    if kind == "module" and spelling != "quoted":
        return f"the {name} module" if spelling == "of module" else name
    match spelling:
        case "parentheses":
            return f"{name}()"
        case "quoted":
            return f"`{name}`"
        case "short" if short is not None:
            return short
        case "of module" if name.count(".") == 1 and kind != "method":
            module, _, rest = name.partition(".")
            return f"{rest} in {module}"
    return name
