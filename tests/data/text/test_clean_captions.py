"""Captions become the token ids that OpenAI's CLIP gives them, whatever signs they are written in."""

import gzip
import html
import json
from itertools import pairwise
from pathlib import Path

import ftfy
import pytest
import regex
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer, PreTrainedTokenizerBase

from data.annotations import DatasetSplits, Record
from data.batch import COPIES, INDEX, TEXT
from data.text.rules import clean_caption
from data.text.tokens import Tokenize, clean_dataset, load_tokenizer
from data.views.augmentation import Augmentation, RandomWordDeletion
from lightning_data import TBPSDataModule
from tests.data.text.test_tokens import siglip_like

CASES = {
    "curly quotes": "a man’s “blue” jacket, ‘worn’",
    "escapes": "black &amp; white, &quot;new&quot; &lt;brand&gt; caf&eacute;",
    "escapes twice": "black &amp;amp; white &amp;lt;3",
    "escapes beside a sign": "a <b>tall</b> man &amp;quot;here&amp;quot; &ldquo;now&rdquo;",
    "ligatures": "a ﬁtted shirt, ﬂat shoes, oﬃce bag, ﬀ ﬄ",
    "full width": "ｒｅｄ　ｓｈｉｒｔ，１２３！",
    "mojibake": "a manâ€™s cafÃ© bag â€œnewâ€\x9d â€“ fine",
    "dashes": "a T–shirt — red… 50 % off™",
    "white space": " a man\u00a0in\ta\nred\r\nshirt&nbsp; ",
    "controls": "a \x1b[31mred\x1b[0m shirt\x07",
    "case": "A MAN IN A RED SHIRT",
    "accents apart": "cafe\u0301 re\u0301sume\u0301",
    "plain": "The man's wearing a red T-shirt, he'll carry 2 bags; they're (almost) new!",
    "special": "a man <|endoftext|> in <|startoftext|> red",
    "other scripts": "áo đỏ 紅い服 👜👜",
}
WORDS = "a man in the red blue black white shirt jacket fitted flat shoes office bag cafe café 123 new fine"


def bytes_to_signs() -> dict[int, str]:
    """OpenAI's table of a printable sign for each byte."""
    kept = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in kept]
    return {byte: chr(byte) for byte in kept} | {byte: chr(256 + place) for place, byte in enumerate(others)}


class OpenAI:
    """The tokenizer of OpenAI's code, written out from its description: clean, split, merge."""

    def __init__(self, vocab: dict[str, int], merges: list[tuple[str, str]]) -> None:
        self.vocab, self.ranks = vocab, {pair: rank for rank, pair in enumerate(merges)}
        self.signs = bytes_to_signs()
        self.pattern = regex.compile(
            r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+", regex.IGNORECASE
        )

    def __call__(self, text: str) -> list[int]:
        text = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
        text = regex.sub(r"\s+", " ", text).strip().lower()
        parts = (part for word in self.pattern.findall(text) for part in self.merged(word))
        return [self.vocab["<|startoftext|>"], *(self.vocab[part] for part in parts), self.vocab["<|endoftext|>"]]

    def merged(self, word: str) -> list[str]:
        if word in ("<|startoftext|>", "<|endoftext|>"):
            return [word]
        parts = [self.signs[byte] for byte in word.encode()]
        parts[-1] += "</w>"
        while len(parts) > 1:
            pairs = [(self.ranks.get(pair, len(self.ranks)), i) for i, pair in enumerate(pairwise(parts))]
            rank, i = min(pairs)
            if rank == len(self.ranks):
                break
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        return parts


def drawn_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A vocabulary in the form of CLIP's, learnt from a few words."""
    core = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    core.train_from_iterator([WORDS] * 3, trainers.BpeTrainer(vocab_size=400, end_of_word_suffix="</w>"))
    merges = [tuple(pair) for pair in json.loads(core.to_str())["model"]["merges"]]
    signs = [*bytes_to_signs().values()]
    tokens = [*signs, *(sign + "</w>" for sign in signs), *(a + b for a, b in merges)]
    return {token: i for i, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}, merges  # type: ignore[return-value]


def published_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """That of OpenAI, 49,408 tokens, as open_clip ships it."""
    shipped = pytest.importorskip("open_clip.tokenizer")
    lines = gzip.decompress(Path(shipped.default_bpe()).read_bytes()).decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    merges = [tuple(line.split()) for line in lines]
    signs = [*bytes_to_signs().values()]
    tokens = [*signs, *(sign + "</w>" for sign in signs), *("".join(pair) for pair in merges)]
    return {token: i for i, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}, merges  # type: ignore[return-value]


@pytest.fixture(scope="module", params=[drawn_vocabulary, published_vocabulary])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[OpenAI, Path]:
    """The tokenizer written out, and a folder with the same one for transformers."""
    vocab, merges = request.param()
    folder = tmp_path_factory.mktemp("clip")
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(map(" ".join, merges)) + "\n", encoding="utf-8")
    (folder / "config.json").write_text('{"model_type": "clip"}')
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}')
    return OpenAI(vocab, merges), folder


def content(tokenize: Tokenize, caption: str) -> list[int]:
    ids, mask = tokenize([caption])
    return ids[0][mask[0]].tolist()


@pytest.mark.parametrize("case", CASES)
def test_ids_are_those_of_openais_tokenizer(both: tuple[OpenAI, Path], case: str) -> None:
    openai, folder = both
    tokenizer = load_tokenizer(folder)
    assert isinstance(tokenizer, CLIPTokenizer)
    expected = openai(CASES[case])
    assert content(Tokenize(tokenizer, 300), CASES[case]) == expected
    counted = Tokenize(tokenizer, 300)
    assert counted.count([CASES[case]]).longest == len(expected)
    assert content(counted, CASES[case]) == expected
    dataset = clean_dataset(splits(CASES[case]), tokenizer)
    assert content(Tokenize(tokenizer, 300, cleaned=True), dataset.test[0].captions[0]) == expected


def test_the_tokenizer_written_out_is_that_of_open_clip() -> None:
    shipped = pytest.importorskip("open_clip.tokenizer").SimpleTokenizer()
    openai = OpenAI(*published_vocabulary())
    for case, caption in CASES.items():
        if case == "special":
            continue  # open_clip has other names for the first and the last token
        assert openai(caption)[1:-1] == shipped.encode(caption), case


def splits(caption: str) -> DatasetSplits:
    records = [Record(1, 0, Path("a.png"), (caption, "a man"))]
    return DatasetSplits("toy", "en", Path(), records, records, records, validation="own")


@pytest.mark.parametrize("case", CASES)
def test_captions_of_other_tokenizers_stay_as_they_are(case: str) -> None:
    tokenizer: PreTrainedTokenizerBase = siglip_like()
    assert clean_dataset(splits(CASES[case]), tokenizer) == splits(CASES[case])
    plain = tokenizer([CASES[case]])["input_ids"][0][:50]
    ids = Tokenize(tokenizer, 50)([CASES[case]]).ids[0]
    assert ids[: len(plain)].tolist() == plain


def test_words_are_whole_before_any_of_them_is_deleted(both: tuple[OpenAI, Path]) -> None:
    dataset = clean_dataset(splits("a manâ€™s ﬁtted&nbsp;shirt &amp;amp; Bag"), load_tokenizer(both[1]))
    assert dataset.train[0].captions == ("a man's fitted shirt & Bag", "a man")


def test_one_clean_text_goes_to_tokens_and_tables_of_a_run(both: tuple[OpenAI, Path], tmp_path: Path) -> None:
    openai, folder = both
    captions = [CASES["mojibake"], CASES["escapes beside a sign"]]
    records = [Record(pid, pid, tmp_path / f"{pid}.png", tuple(captions)) for pid in range(2)]
    for record in records:
        Image.new("RGB", (8, 16)).save(record.image_path)
    data = TBPSDataModule(
        DatasetSplits("toy", "en", tmp_path, records, records, records, validation="own"),
        tokenizer_path=folder,
        max_length=300,
        img_size=(16, 8),
        interpolation="bilinear",
        aug=Augmentation("deletes", text=[RandomWordDeletion(0.0)]),
        sampler="random",
        num_instance=1,
        batch_size=4,
        eval_batch_size=4,
        num_workers=0,
        cache=False,
        cache_dir=tmp_path,
        augment_on="worker",
        seed=0,
    )
    data.set_views({TEXT})
    assert data.dataset.captions("test") == [clean_caption(caption) for caption in captions] * 2
    assert data.counts.most_tokens == max(len(openai(caption)) for caption in captions)
    (batch,) = data.train_dataloader()
    _, texts = data.test_dataloader()
    for index, ids, mask in zip(batch[INDEX].tolist(), *batch[TEXT], strict=True):
        assert ids[mask].tolist() == openai(captions[index % 2])
    [found] = texts
    assert found[COPIES].tolist() == [2, 2]
    for index, ids, mask in zip(found[INDEX][::2].tolist(), *found[TEXT], strict=True):
        assert ids[mask].tolist() == openai(captions[index % 2])


def test_what_is_plain_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(text: str) -> str:
        raise AssertionError(text)

    monkeypatch.setattr(ftfy, "fix_text", never)
    every = "".join(map(chr, range(32, 127))).replace("&", "")
    assert clean_caption(every) == every


def test_what_is_not_looked_at_would_stay_as_it_is() -> None:
    signs = [chr(code) for code in range(32, 127) if chr(code) != "&"]
    for caption in [
        "".join(signs),
        "".join(reversed(signs)),
        *("a" + first + second for first in signs for second in signs),
    ]:
        assert html.unescape(html.unescape(ftfy.fix_text(caption))) == caption
