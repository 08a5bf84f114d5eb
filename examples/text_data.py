"""Text for the language model: Python's own standard library, as tokens of a byte-level vocabulary.

Code, comments and documentation of some ten megabytes are on every machine that runs this: nothing is downloaded. The
vocabulary is trained on the training text by byte-pair encoding and begins with the 256 bytes, so that every text has
tokens, and the bytes of a token are known: it measures a model in bits per byte, whatever the vocabulary.
"""

import hashlib
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

END_OF_FILE = "<|endoffile|>"
SMALLEST_VOCABULARY = 257  # the bytes and the end of a file

# Tests repeat each other, and the tables of the encodings are numbers rather than text.
SKIPPED = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings"})
VALIDATION_SHARE = 20  # one file in so many is held out
SMALL_SHARE = 16  # with --small, one of the other files in so many is trained on


class Texts(NamedTuple):
    """The contents of the files of both splits, and a fingerprint that changes with any of them."""

    train: list[str]
    validation: list[str]
    fingerprint: str


class Corpus(NamedTuple):
    """Token sequences [N] (int32), files one after another, and the vocabulary that they are written in."""

    train: np.ndarray
    validation: np.ndarray
    tokenizer: Tokenizer

    def bytes_per_token(self, tokens: np.ndarray) -> float:
        """The mean number of bytes of text that a token stands for; the end of a file stands for none."""
        # In a byte-level vocabulary, every character of a token's name is one byte.
        names = map(self.tokenizer.id_to_token, range(self.tokenizer.get_vocab_size()))
        lengths = np.array([0 if name == END_OF_FILE else len(name) for name in names])
        return float(lengths[tokens].mean())


def source_names(root: Path) -> Iterator[str]:
    """The names of all Python files below a folder that are not skipped."""
    for folder, folders, files in os.walk(root):
        folders[:] = set(folders) - SKIPPED  # they are not even looked into
        yield from ((Path(folder) / file).relative_to(root).as_posix() for file in files if file.endswith(".py"))


def load_texts(small: bool) -> Texts:
    """Read the standard library and split it by file: a file of the same name is always in the same split."""
    root = Path(sysconfig.get_paths()["stdlib"])
    train, validation, digest = [], [], hashlib.sha256()
    for name in sorted(source_names(root)):
        draw = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])
        group, held_out = draw // VALIDATION_SHARE, draw % VALIDATION_SHARE == 0
        if small and not held_out and group % SMALL_SHARE:
            continue
        text = (root / name).read_text(encoding="utf-8", errors="replace")
        (validation if held_out else train).append(text)
        digest.update(f"{name}\0{text}\0".encode())
    return Texts(train, validation, digest.hexdigest()[:12])


def load_corpus(texts: Texts, vocabulary: int, folder: Path) -> Corpus:
    """Write the texts in tokens, of a vocabulary that is trained on them once and kept in the folder."""
    tokenizer = load_vocabulary(texts, vocabulary, folder)
    return Corpus(encode(tokenizer, texts.train), encode(tokenizer, texts.validation), tokenizer)


def load_vocabulary(texts: Texts, vocabulary: int, folder: Path) -> Tokenizer:
    path = folder / f"vocabulary-{vocabulary}-{texts.fingerprint}.json"
    if not path.exists():
        megabytes = sum(len(text.encode()) for text in texts.train) / 1e6
        print(f"Training a vocabulary of {vocabulary} tokens on {megabytes:.1f} MB of text")
        folder.mkdir(parents=True, exist_ok=True)
        # The name appears only with the whole file behind it, even if the process is killed while it writes.
        unfinished = path.with_suffix(f".{os.getpid()}.tmp")
        unfinished.write_text(train_vocabulary(texts.train, vocabulary).to_str(), encoding="utf-8")
        unfinished.replace(path)
    return Tokenizer.from_file(str(path))


def train_vocabulary(texts: list[str], size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END_OF_FILE],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, texts: list[str]) -> np.ndarray:
    """The tokens of all texts, [N], each text followed by the end of its file."""
    end = tokenizer.token_to_id(END_OF_FILE)
    return np.concatenate([np.array([*encoding.ids, end], np.int32) for encoding in tokenizer.encode_batch(texts)])


def windows(tokens: jax.Array, starts: jax.Array, length: int) -> jax.Array:
    """Pieces [..., length + 1] of tokens [N] that begin at starts [...]: inputs, and labels one token later."""
    return tokens[starts[..., None] + jnp.arange(length + 1)]


def spread_windows(tokens: np.ndarray, batches: int, batch: int, length: int) -> jax.Array:
    """Windows [batches, batch, length + 1] at equal distances over all tokens."""
    starts = np.linspace(0, len(tokens) - length - 1, batches * batch).astype(np.int32)
    return windows(jnp.asarray(tokens), jnp.asarray(starts).reshape(batches, batch), length)
