"""What ``penstock train`` does, from text to checkpoint, top to bottom.

In: a recipe and the folders of earlier stages; out: the folder of each stage, and facts about it.
``prepare`` text -> ``tokenizer`` and tokens -> ``pretrain`` on documents -> ``sft`` on questions and answers ->
``evaluate`` what it learnt -> ``export`` a checkpoint to serve.
Nothing here decides whether a stage has to run, or loads what is unfinished: that is train/run.py.
"""

from __future__ import annotations

import platform
import shutil
import statistics
from collections.abc import Sequence
from typing import Any

import msgspec

from penstock.config.recipe import TrainingRecipe
from penstock.evaluate.bits_per_byte import bits_per_byte
from penstock.evaluate.questions import Answer
from penstock.models.checkpoint import SINGLE_FILE
from penstock.models.decoder import Decoder
from penstock.models.load import load_decoder
from penstock.models.save import save_decoder, write_atomically
from penstock.text.tokenizer import Tokenizer
from penstock.train.artefact import file_digest
from penstock.train.bpe import train_bpe, write_tokenizer
from penstock.train.card import model_card
from penstock.train.chats import Exchange, as_chats, encode_chats, encode_text
from penstock.train.checkpoint import Checkpoints
from penstock.train.corpus import NOTICE_FILE, Corpus, python_corpus, read_corpus, split_documents, write_corpus
from penstock.train.declines import declined_questions, questions_about_itself
from penstock.train.generate import answer_greedily
from penstock.train.initial import initial_decoder
from penstock.train.loop import StepReport, train
from penstock.train.loss import document_nats
from penstock.train.measure import Measured, measure
from penstock.train.packing import PackedRows
from penstock.train.precision import ops_for
from penstock.train.questions import training_questions
from penstock.train.run import Stage, Work
from penstock.train.tokens import Document, TokenSet, write_tokens
from penstock.wire.errors import Problem

# Folders within a stage's folder.
_CORPUS, _TOKENIZER, _DOCUMENTS, _HELD_OUT, _CHATS = "corpus", "tokenizer", "documents", "held_out", "chats"
_MEASURED = "measured.json"


def prepare(work: Work) -> dict[str, Any]:
    """The text: this Python's documentation."""
    corpus = python_corpus()
    write_corpus(work.directory / _CORPUS, corpus)
    recorded = work.recipe.corpus.digest
    return {
        "python_version": corpus.python_version,
        "corpus_digest": corpus.digest,
        "as_recorded": recorded == corpus.digest if recorded else None,
        "documents": len(corpus.documents),
        "bytes": corpus.num_bytes,
        "callables": len(corpus.callables),
    }


def tokenizer(work: Work) -> dict[str, Any]:
    """A vocabulary made for that text, and everything the loops read, as tokens."""
    recipe, seed = work.recipe, work.recipe.seed
    corpus = read_corpus(work.done["prepare"] / _CORPUS)
    exchanges = [
        *training_questions(corpus, recipe.questions.per_entry, seed),
        *declined_questions(corpus, recipe.questions.declined, seed),
        *questions_about_itself(recipe.questions.about_itself_each),
    ]
    work.progress("learning the vocabulary")
    content = train_bpe(_texts(corpus, exchanges), recipe.tokenizer.vocab_size)
    write_tokenizer(work.directory / _TOKENIZER, content, max_position=recipe.model.max_position)
    encoder = Tokenizer.load(work.directory / _TOKENIZER)
    provenance = {
        "tokenizer": file_digest(work.directory / _TOKENIZER / "tokenizer.json"),
        "corpus": corpus.digest,
    }
    work.progress("encoding documents")
    parts = split_documents(corpus, recipe.corpus.held_out_share, seed)
    kept, away = ([encode_text(encoder, text) for text in part] for part in parts)
    work.progress("encoding questions and answers")
    # A document of n tokens takes n - 1 places of a row.
    chats = list(encode_chats(encoder, as_chats(exchanges, seed), recipe.sft.row_tokens + 1))
    for name, part in ((_DOCUMENTS, kept), (_HELD_OUT, away), (_CHATS, chats)):
        write_tokens(work.directory / name, part, provenance=provenance)
    return {
        "vocabulary": encoder.vocab_size,
        "document_tokens": sum(len(document.token_ids) for document in kept),
        "held_out_documents": len(away),
        "exchanges": len(exchanges),
        "chats": len(chats),
        "chat_tokens": sum(len(chat.token_ids) for chat in chats),
    }


def pretrain(work: Work) -> dict[str, Any]:
    """A decoder that has read the documents."""
    recipe = work.recipe
    decoder = initial_decoder(
        recipe.model, recipe.tokenizer.vocab_size, recipe.seed, ops_for(recipe.pretrain.precision)
    )
    facts = _train(work, "pretrain", decoder, _DOCUMENTS, recipe.pretrain)
    save_decoder(decoder, work.directory)
    held_out = _documents(_tokens(work, _HELD_OUT))
    decoder = load_decoder(work.directory, recipe.export.dtype).requires_grad_(False)
    row_tokens = recipe.pretrain.row_tokens
    bits = bits_per_byte(held_out, lambda part: document_nats(decoder, part, row_tokens))
    return {**facts, "held_out_bits_per_byte": bits}


def sft(work: Work) -> dict[str, Any]:
    """The same decoder, which now answers questions."""
    recipe = work.recipe.sft
    before = load_decoder(work.done["pretrain"], "float32")
    decoder = Decoder(before.config, ops_for(recipe.precision))
    decoder.load_state_dict(before.state_dict())
    facts = _train(work, "sft", decoder, _CHATS, recipe)
    save_decoder(decoder, work.directory)
    return facts


def evaluate(work: Work) -> dict[str, Any]:
    """What it learnt, asked of the weights as they are exported, by the engine that serves them."""
    recipe = work.recipe
    decoder, encoder = _model(work)
    corpus = read_corpus(work.done["prepare"] / _CORPUS)
    measured = measure(
        corpus,
        held_out=_documents(_tokens(work, _HELD_OUT)),
        nats=lambda documents: document_nats(decoder, documents, recipe.pretrain.row_tokens),
        ask=lambda questions: _ask(decoder, encoder, questions, recipe.evaluate.max_answer_tokens),
        num_callables=recipe.evaluate.max_callables,
        seed=recipe.seed,
        progress=lambda done, due: work.progress(f"{done:,} of {due:,} questions asked"),
    )
    write_atomically(work.directory / _MEASURED, lambda file: file.write(msgspec.json.encode(measured)))
    facts = {
        "bits_per_byte": measured.bits_per_byte,
        "callables_asked": measured.num_callables_asked,
        "exact_share": measured.known.exact.share,
        "answers_ended_share": measured.known.ended.share,
        "declined_share": measured.unknown.exact.share,
        "declined_by_mistake_share": measured.known.refused.share,
    }
    work.run.append({"stage": "evaluate", **facts})
    return facts


def export(work: Work) -> dict[str, Any]:
    """A checkpoint in Hugging Face layout with its card and the licence notice of its text."""
    recipe = work.recipe
    decoder, _ = _model(work)
    save_decoder(decoder, work.directory)
    weights_bytes = (work.directory / SINGLE_FILE).stat().st_size
    if weights_bytes > recipe.export.max_bytes:
        message = f"The weights take {weights_bytes:,} bytes; export.max_bytes allows {recipe.export.max_bytes:,}."
        raise Problem("recipe_invalid", message, param="export.max_bytes")
    for file in sorted((work.done["tokenizer"] / _TOKENIZER).iterdir()):
        shutil.copyfile(file, work.directory / file.name)
    corpus = read_corpus(work.done["prepare"] / _CORPUS)
    measured = msgspec.json.decode((work.done["evaluate"] / _MEASURED).read_bytes(), type=Measured)
    num_parameters = sum(parameter.numel() for parameter in decoder.parameters())
    card = model_card(recipe, corpus, measured, num_parameters=num_parameters)
    write_atomically(work.directory / "README.md", lambda file: file.write(card.encode()))
    write_atomically(work.directory / NOTICE_FILE, lambda file: file.write(corpus.notice.encode()))
    return {"parameters": num_parameters, "weights_bytes": weights_bytes}


STAGES = (
    Stage("prepare", (), lambda recipe: [recipe.corpus.kind, platform.python_version()], prepare),
    Stage(
        "tokenizer",
        ("prepare",),
        lambda recipe: [
            recipe.tokenizer,
            recipe.questions,
            recipe.corpus.held_out_share,
            recipe.sft.row_tokens,
            recipe.model.max_position,
            recipe.seed,
        ],
        tokenizer,
    ),
    Stage(
        "pretrain",
        ("tokenizer",),
        lambda recipe: [recipe.model, recipe.pretrain, recipe.export.dtype, recipe.seed],
        pretrain,
    ),
    Stage("sft", ("tokenizer", "pretrain"), lambda recipe: [recipe.sft, recipe.seed], sft),
    Stage(
        "evaluate",
        ("prepare", "tokenizer", "sft"),
        lambda recipe: [recipe.evaluate, recipe.export.dtype, recipe.pretrain.row_tokens, recipe.seed],
        evaluate,
    ),
    Stage("export", ("prepare", "tokenizer", "sft", "evaluate"), lambda recipe: recipe, export),
)


def _train(work: Work, stage: str, decoder: Decoder, tokens: str, recipe: TrainingRecipe) -> dict[str, Any]:
    """Run the loop on one of the token sets; every report becomes a line of metrics and of progress."""
    token_set = _tokens(work, tokens)
    rows = PackedRows(
        token_set.token_ids,
        token_set.loss_mask,
        token_set.offsets,
        row_tokens=recipe.row_tokens,
        seed=work.recipe.seed,
    )
    reports: list[StepReport] = []

    def report(step: StepReport) -> None:
        reports.append(step)
        work.run.append({"stage": stage, **msgspec.to_builtins(step)})
        work.progress(_words(step))

    def resumed(step: int) -> None:
        work.run.rewind(stage, step)
        if step:
            work.progress(f"resumed at step {step}")

    checkpoints = Checkpoints(work.checkpoints, work.key)
    train(decoder, rows, recipe, work.recipe.seed, checkpoints, report=report, resumed=resumed, clock=work.clock)
    facts = {
        "steps": recipe.steps,
        "epochs": recipe.steps * recipe.rows_per_step / len(rows),
        "rows_filled_share": rows.num_filled / (len(rows) * recipe.row_tokens),
    }
    # None where the loop had ended and only the stage had not.
    if reports:
        facts["final_loss"] = reports[-1].loss
        facts["median_tokens_per_s"] = statistics.median(step.tokens_per_s for step in reports)
    return facts


def _tokens(work: Work, name: str) -> TokenSet:
    """A token set that was made by the tokenizer beside it.  Raises ``artefact_invalid``."""
    folder = work.done["tokenizer"]
    token_set = TokenSet.load(folder / name)
    made_by, here = token_set.manifest["provenance"]["tokenizer"], file_digest(folder / _TOKENIZER / "tokenizer.json")
    if made_by != here:
        message = f"{folder / name} was made by the tokenizer {made_by[:12]}, but the one beside it is {here[:12]}."
        raise Problem("artefact_invalid", message)
    return token_set


def _documents(token_set: TokenSet) -> list[Document]:
    return [token_set.document(index) for index in range(len(token_set))]


def _model(work: Work) -> tuple[Decoder, Tokenizer]:
    """The fine-tuned weights as they will be served, and their tokenizer.  Raises ``artefact_invalid``."""
    decoder = load_decoder(work.done["sft"], work.recipe.export.dtype).requires_grad_(False)
    encoder = Tokenizer.load(work.done["tokenizer"] / _TOKENIZER)
    if encoder.vocab_size != decoder.config.vocab_size:
        message = (
            f"The tokenizer has {encoder.vocab_size} tokens, but the model was made for {decoder.config.vocab_size}."
        )
        raise Problem("artefact_invalid", message)
    return decoder, encoder


def _ask(decoder: Decoder, encoder: Tokenizer, questions: Sequence[str], max_tokens: int) -> list[Answer]:
    assert encoder.chat_template is not None
    prompts = []
    for question in questions:
        message = {"role": "user", "content": question}
        text = encoder.chat_template.render([message], add_generation_prompt=True)
        prompts.append(encoder.encode(text, add_special_tokens=False))
    answers = answer_greedily(decoder, prompts, max_tokens=max_tokens, stop_token_ids=encoder.stop_token_ids)
    return [Answer(text=encoder.decode(answer.token_ids), ended=answer.ended) for answer in answers]


def _texts(corpus: Corpus, exchanges: Sequence[Exchange]) -> list[str]:
    return [*corpus.documents, *(f"user\n{exchange.question}\nassistant\n{exchange.answer}" for exchange in exchanges)]


def _words(step: StepReport) -> str:
    minutes, seconds = divmod(round(step.left_s), 60)
    return (
        f"step {step.step:,}/{step.steps:,}  loss {step.loss:.4f}  lr {step.learning_rate:.2g}  "
        f"{step.tokens_per_s:,.0f} tokens/s  {minutes}m{seconds:02}s left"
    )
