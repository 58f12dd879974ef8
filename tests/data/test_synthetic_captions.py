import random
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from data.synthetic.attributes import COLORS, Appearance, Identity, sample_identities
from data.synthetic.captions.annotators import Caption, annotate
from data.synthetic.captions.content import choose_content, name_color
from data.synthetic.captions.phrases import listed
from data.synthetic.population import PEDESTRIANS, STRANGERS
from data.synthetic.shot import CUTS, VIEWS, Shot, sample_shot, visible_fields

# Written down here once more, so that a wrong entry in the lexicon is not its own witness.
COLOR_WORDS = {
    "en": {
        "gray": "grey", "silver": "grey", "blond": "blond", "fair": "blond", "ginger": "red", "violet": "purple",
        "black": "black", "white": "white", "grey": "grey", "red": "red", "orange": "orange", "yellow": "yellow",
        "green": "green", "blue": "blue", "purple": "purple", "pink": "pink", "brown": "brown",
        "dark": "dark", "light": "light",
    },
    "vi": {
        "xanh lá cây": "green", "xanh lục": "green", "xanh dương": "blue", "xanh nước biển": "blue",
        "đỏ hung": "red", "vàng hoe": "blond", "đen": "black", "trắng": "white", "xám": "grey", "ghi": "grey",
        "bạc": "grey", "đỏ": "red", "cam": "orange", "vàng": "yellow", "tím": "purple", "hồng": "pink", "nâu": "brown",
        "tối": "dark", "sáng": "light",
    },
}  # fmt: skip
KINDS = {
    "en": {
        r"t-shirt|tee": ("upper", {"t-shirt"}), r"sweater|jumper|pullover": ("upper", {"sweater"}),
        r"hoodie|hooded sweatshirt": ("upper", {"hoodie"}), r"jacket": ("upper", {"jacket"}),
        r"coat|overcoat": ("upper", {"coat"}), r"tank top|sleeveless top": ("upper", {"tank top"}),
        r"dress": ("upper", {"dress"}), r"trousers|pants": ("lower", {"trousers"}), r"jeans": ("lower", {"jeans"}),
        r"shorts": ("lower", {"shorts"}), r"skirt": ("lower", {"skirt", "long skirt"}),
        r"sneakers|trainers|sports shoes": ("shoes", {"trainers"}), r"boots": ("shoes", {"boots"}),
        r"sandals": ("shoes", {"sandals"}), r"backpack|rucksack": ("bag", {"backpack"}),
        r"handbag": ("bag", {"handbag"}), r"suitcase": ("bag", {"suitcase"}),
        r"shoulder bag|crossbody bag": ("bag", {"shoulder bag"}), r"cap": ("headwear", {"cap"}),
        r"helmet": ("headwear", {"helmet"}), r"conical": ("headwear", {"conical hat"}),
        r"sunglasses|dark glasses": ("eyewear", {"sunglasses"}), r"phone": ("held", {"phone"}),
        r"umbrella": ("held", {"umbrella"}), r"ponytail": ("hair", {"ponytail"}), r"bun": ("hair", {"bun"}),
        r"stripes|striped": ("pattern", {"striped", "pinstriped"}), r"checked|plaid|check": ("pattern", {"checked"}),
        r"dots|dotted": ("pattern", {"dotted"}), r"print|logo": ("pattern", {"print"}),
        r"man|male|he|his": ("gender", {"man"}), r"woman|female|she|her": ("gender", {"woman"}),
    },
    "vi": {
        r"áo phông|áo thun": ("upper", {"t-shirt"}), r"áo sơ mi": ("upper", {"shirt"}),
        r"áo len": ("upper", {"sweater"}),
        r"áo hoodie|áo nỉ có mũ": ("upper", {"hoodie"}), r"áo khoác": ("upper", {"jacket", "coat"}),
        r"áo măng tô": ("upper", {"coat"}), r"áo ba lỗ|áo sát nách": ("upper", {"tank top"}),
        r"váy liền|đầm": ("upper", {"dress"}), r"quần dài|quần vải": ("lower", {"trousers"}),
        r"quần jean|quần bò": ("lower", {"jeans"}), r"quần soóc|quần đùi": ("lower", {"shorts"}),
        r"váy ngắn": ("lower", {"skirt"}), r"váy dài": ("lower", {"long skirt"}),
        r"giày thể thao|giày sneaker": ("shoes", {"trainers"}), r"bốt": ("shoes", {"boots"}),
        r"dép|xăng đan": ("shoes", {"sandals"}), r"ba lô|balo": ("bag", {"backpack"}),
        r"túi xách": ("bag", {"handbag"}),
        r"va li|vali": ("bag", {"suitcase"}), r"túi đeo chéo": ("bag", {"shoulder bag"}),
        r"mũ lưỡi trai": ("headwear", {"cap"}), r"mũ bảo hiểm": ("headwear", {"helmet"}),
        r"nón lá": ("headwear", {"conical hat"}), r"kính": ("eyewear", {"sunglasses"}),
        r"điện thoại": ("held", {"phone"}),
        r"ô|dù": ("held", {"umbrella"}), r"đuôi ngựa": ("hair", {"ponytail"}), r"búi": ("hair", {"bun"}),
        r"kẻ ngang|sọc ngang": ("pattern", {"striped"}), r"kẻ dọc|sọc dọc": ("pattern", {"pinstriped"}),
        r"ca rô|caro": ("pattern", {"checked"}), r"chấm bi": ("pattern", {"dotted"}),
        r"in hình|hình in": ("pattern", {"print"}),
        r"đàn ông|nam|anh": ("gender", {"man"}), r"phụ nữ|nữ|cô": ("gender", {"woman"}),
    },
}  # fmt: skip
SIDES = {"en": {"left": "left", "right": "right"}, "vi": {"trái": "left", "phải": "right"}}


@dataclass(frozen=True)
class Sample:
    person: Appearance
    shot: Shot
    language: str
    caption: Caption


def people(count: int, seed: int = 3) -> list[Identity]:
    return sample_identities({"test": count}, 0.2, random.Random(seed))


def shot_of(person: Appearance, view: str, rng: random.Random, camera: int = 0) -> Shot:
    return sample_shot(person, replace(PEDESTRIANS.cameras[camera], views={view: 1}), rng)


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    found: list[Sample] = []
    for identity in people(150):
        for camera, view in enumerate(VIEWS):
            rng = random.Random(f"{identity.pid}/{view}")
            shot = shot_of(identity.appearance, view, rng, camera)
            for language in ("vi", "en"):
                for caption in annotate(identity.appearance, shot, language, 2, rng, PEDESTRIANS.styles):
                    found.append(Sample(identity.appearance, shot, language, caption))
    return found


def words(text: str, pattern: str) -> Iterator[str]:
    return (match[0] for match in re.finditer(rf"(?<!\w)(?:{pattern})(?!\w)", text.lower()))


def test_captions_only_say_what_the_picture_shows(samples: list[Sample]) -> None:
    for sample in samples:
        visible = visible_fields(sample.person, sample.shot)
        assert set(sample.caption.said) <= visible
        said = {field: value for field, value in sample.caption.said.items() if not field.endswith("color")}
        assert all(value == getattr(sample.person, field) for field, value in said.items())


def test_every_color_word_is_a_color_that_the_caption_may_say(samples: list[Sample]) -> None:
    for sample in samples:
        table = COLOR_WORDS[sample.language]
        longest_first = "|".join(sorted(table, key=len, reverse=True))
        said = {value for field, value in sample.caption.said.items() if field.endswith("color")}
        text = sample.caption.text.replace("kính đen", "").replace("dark glasses", "")  # sunglasses
        found = {table[word] for word in words(text, longest_first)}
        if sample.language == "vi":  # one word, vàng, for yellow clothes and blond hair
            found, said = ({"yellow" if color == "blond" else color for color in one} for one in (found, said))
        assert found == said, text


def test_every_garment_bag_pattern_and_gender_word_is_true(samples: list[Sample]) -> None:
    for sample in samples:
        for pattern, (field, kinds) in KINDS[sample.language].items():
            if any(words(sample.caption.text, pattern)):
                said = sample.caption.said.get(field)
                assert said in kinds, f"{pattern}: {sample.caption.text}"


def test_left_and_right_are_those_of_what_is_carried(samples: list[Sample]) -> None:
    for sample in samples:
        sides = SIDES[sample.language]
        found = {sides[word] for word in words(sample.caption.text, "|".join(sides))}
        assert found == {side for field, side in sample.caption.said.items() if field.endswith("_side")}


def test_captions_are_clean_sentences(samples: list[Sample]) -> None:
    for sample in samples:
        text = sample.caption.text
        assert text == unicodedata.normalize("NFC", text)
        assert text == " ".join(text.split())
        assert text[0].isupper()
        assert text.endswith(".")
        assert not re.search(r"[{}@]| [,.]|,,|\.\.", text), text
        if sample.language == "en":
            assert text.isascii()
            assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", text), text
        else:
            assert re.search(r"[ạảãàáâậầấẩẫăắằặẳẵóòọõỏôộổỗồốơờớợởỡéèẻẹẽêếềệểễúùụủũưựữửừứíìịỉĩýỳỷỵỹđ]", text)


def test_the_two_annotators_differ_in_style() -> None:
    person = people(1)[0].appearance
    shot = shot_of(person, "front", random.Random(0))
    for language, opening in (("vi", "mặc"), ("en", "(is|wears|wearing|dressed|in a)")):
        seeds, styles = map(random.Random, range(20)), PEDESTRIANS.styles
        terse_and_flowing = [annotate(person, shot, language, 2, rng, styles) for rng in seeds]
        assert all(first.text != second.text for first, second in terse_and_flowing)
        sentences = [caption.text.count(".") for pair in terse_and_flowing for caption in pair]
        assert 1 in sentences
        assert max(sentences) > 1
        assert any(re.search(opening, caption.text) for pair in terse_and_flowing for caption in pair)


def test_views_hide_what_they_hide() -> None:
    masked = next(i.appearance for i in people(400) if i.appearance.mask_color)
    masked = replace(masked, upper="jacket", pattern="plain", pattern_color=None, inner_color="white")
    shots = {view: replace(shot_of(masked, view, random.Random(0)), cut=None) for view in VIEWS}
    assert "mask_color" in visible_fields(masked, shots["front"])
    assert "mask_color" in visible_fields(masked, shots["left"])
    assert "mask_color" not in visible_fields(masked, shots["back"])
    assert "inner_color" not in visible_fields(masked, shots["left"])
    handbag = replace(masked, bag="handbag", bag_color="red", bag_side="left")
    assert "bag" in visible_fields(handbag, shots["left"])
    assert "bag" not in visible_fields(handbag, shots["right"])
    for cut in ("shins", "bush", "waist", "counter"):
        seen = visible_fields(handbag, replace(shots["front"], cut=cut))
        assert not {"shoes", "shoes_color"} & seen
        assert ({"lower", "lower_color", "bag"} <= seen) == (CUTS[cut] < 0.4)


def test_colors_are_called_after_their_looks_and_light_changes_the_names() -> None:
    def share(light: tuple[float, float, float]) -> float:
        return sum(name_color("grey", COLORS, light, random.Random(seed)) == "grey" for seed in range(400)) / 400

    assert share((1.0, 1.0, 1.0)) > 0.9
    assert share((0.5, 0.35, 0.2)) < 0.9


def test_captions_are_terse_and_full() -> None:
    rng = random.Random(4)
    said = [
        choose_content(identity.appearance, shot_of(identity.appearance, "front", rng), rng) for identity in people(300)
    ]
    assert sum(len(one) <= 4 for one in said) >= 10
    assert sum(len(one) >= 10 for one in said) > 30
    assert any(one["upper_color"] in ("dark", "light") for one in said)


def test_the_populations_differ() -> None:
    def black(habits: dict[object, float]) -> int:
        found = sample_identities({"train": 500}, 0.0, random.Random(0), habits)
        return sum(one.appearance.upper_color == "black" for one in found)

    assert black(PEDESTRIANS.habits) > 1.5 * black(STRANGERS.habits)
    assert all(camera not in STRANGERS.cameras for camera in PEDESTRIANS.cameras)


def agreement(said: dict[str, str], person: Appearance, visible: frozenset[str]) -> int:
    """Returns how many of the `said` details a picture shows, less what it contradicts; colours are often mistaken."""
    score = 0
    for field, value in said.items():
        seen = getattr(person, field)
        if seen == value and field in visible:
            score += 3
        elif seen != value and field in visible:
            score -= 3 if field.endswith("color") else 100
        elif seen is None:
            score -= 100
    return score


@pytest.mark.parametrize("language", ["vi", "en"])
def test_a_perfect_reader_finds_most_persons(language: str) -> None:
    gallery: list[tuple[int, Appearance, frozenset[str]]] = []
    queries: list[tuple[int, dict[str, str]]] = []
    for identity in people(120):
        for camera in range(2):
            rng = random.Random(f"{identity.pid}/{camera}")
            shot = sample_shot(identity.appearance, PEDESTRIANS.cameras[camera], rng)
            gallery.append((identity.pid, identity.appearance, visible_fields(identity.appearance, shot)))
            captions = annotate(identity.appearance, shot, language, 2, rng, PEDESTRIANS.styles)
            queries += [(identity.pid, caption.said) for caption in captions]
    hits = 0
    for pid, said in queries:
        scores = [(agreement(said, person, visible), owner) for owner, person, visible in gallery]
        best = max(scores)[0]
        hits += all(owner == pid for score, owner in scores if score == best)
    assert hits / len(queries) > 0.7


def test_listed() -> None:
    assert listed([], "and") == ""
    assert listed(["a"], "and") == "a"
    assert listed(["a", "b", "c"], "và") == "a, b và c"
