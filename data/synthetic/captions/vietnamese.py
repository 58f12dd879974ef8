"""Vietnamese captions: a terse annotator who lists, and a flowing one who tells."""

import random
from typing import Final

from data.synthetic.captions.content import Said, Scene
from data.synthetic.captions.phrases import Lexicon, Phrases, Words, listed, sentence

Thing = tuple[str, str]  # key of `VERBS`, phrase

LEXICON: Final = Lexicon(
    colors={
        "black": ("đen",),
        "white": ("trắng",),
        "grey": ("xám", "ghi"),
        "red": ("đỏ",),
        "orange": ("cam",),
        "yellow": ("vàng",),
        "green": ("xanh lá cây", "xanh lục"),
        "blue": ("xanh dương", "xanh nước biển"),
        "purple": ("tím",),
        "pink": ("hồng",),
        "brown": ("nâu",),
        "dark": ("tối màu", "màu tối"),
        "light": ("sáng màu", "màu sáng"),
    },
    hair_colors={
        "black": ("đen",),
        "brown": ("nâu",),
        "blond": ("vàng", "vàng hoe"),
        "grey": ("bạc", "xám"),
        "red": ("đỏ", "đỏ hung"),
    },
    color_forms=("màu {}", "{}"),
    things={
        "short": ("tóc ngắn {c}", "tóc cắt ngắn {c}"),
        "long": ("tóc dài {c}", "tóc xõa dài {c}"),
        "bob": ("tóc ngang vai {c}", "tóc bob {c}"),
        "ponytail": ("tóc buộc đuôi ngựa {c}", "tóc đuôi ngựa {c}"),
        "bun": ("tóc búi {c}", "tóc búi cao {c}"),
        "shaved": ("đầu trọc", "đầu cạo trọc"),
        "t-shirt": ("áo phông", "áo thun"),
        "shirt": ("áo sơ mi",),
        "sweater": ("áo len",),
        "hoodie": ("áo hoodie", "áo nỉ có mũ"),
        "jacket": ("áo khoác",),
        "coat": ("áo khoác dài", "áo măng tô"),
        "tank top": ("áo ba lỗ", "áo sát nách"),
        "dress": ("váy liền", "váy liền thân", "đầm"),
        "trousers": ("quần dài {c}", "quần vải {c}"),
        "jeans": ("quần jean {c}", "quần bò {c}"),
        "shorts": ("quần soóc {c}", "quần đùi {c}"),
        "skirt": ("chân váy ngắn {c}", "váy ngắn {c}"),
        "long skirt": ("chân váy dài {c}", "váy dài {c}"),
        "trainers": ("giày thể thao {c}", "đôi giày thể thao {c}", "giày sneaker {c}"),
        "boots": ("bốt {c}", "giày bốt {c}", "đôi bốt {c}"),
        "sandals": ("dép {c}", "đôi dép {c}", "xăng đan {c}"),
        "cap": ("mũ lưỡi trai {c}", "chiếc mũ lưỡi trai {c}"),
        "beanie": ("mũ len {c}", "chiếc mũ len {c}"),
        "wide hat": ("mũ rộng vành {c}", "chiếc mũ vành rộng {c}"),
        "helmet": ("mũ bảo hiểm {c}", "chiếc mũ bảo hiểm {c}"),
        "conical hat": ("nón lá", "chiếc nón lá"),
        "backpack": ("ba lô {c}", "chiếc ba lô {c}", "balo {c}"),
        "shoulder bag": ("túi đeo chéo {c}", "chiếc túi đeo chéo {c}"),
        "handbag": ("túi xách {c}", "chiếc túi xách {c}"),
        "suitcase": ("va li {c}", "chiếc va li {c}", "vali {c}"),
        "sunglasses": ("kính râm", "kính đen"),
        "mask": ("khẩu trang {c}", "chiếc khẩu trang {c}"),
        "scarf": ("khăn quàng cổ {c}", "chiếc khăn quàng cổ {c}"),
        "phone": ("điện thoại",),
        "umbrella": ("ô {c}", "chiếc ô {c}", "dù {c}"),
    },
    patterns={
        "plain": ("{n} {c}",),
        "striped": ("{n} {c} kẻ ngang {p}", "{n} {c} có sọc ngang {p}", "{n} kẻ ngang {c} và {p}"),
        "pinstriped": ("{n} {c} kẻ dọc {p}", "{n} {c} có sọc dọc {p}", "{n} kẻ dọc {c} và {p}"),
        "checked": ("{n} {c} kẻ ca rô {p}", "{n} kẻ ca rô {c} và {p}", "{n} caro {c} và {p}"),
        "dotted": ("{n} {c} chấm bi {p}", "{n} {c} có chấm bi {p}"),
        "print": ("{n} {c} in hình {p} trước ngực", "{n} {c} có hình in {p} trước ngực"),
    },
    layers=("{x} khoác ngoài áo {c}", "{x} bên ngoài áo {c}", "áo {c} bên trong {x}"),
    places={
        "shoulder bag": "bên hông {s}",
        "handbag": "ở tay {s}",
        "suitcase": "ở bên {s}",
        "phone": "bên tai {s}",
        "umbrella": "ở tay {s}",
    },
    sides={"left": "trái", "right": "phải"},
)
VERBS: Final[Words] = {
    "headwear": ("đội {x}",),
    "shoes": ("đi {x}", "mang {x}"),
    "eyewear": ("đeo {x}",),
    "mask": ("đeo {x}",),
    "scarf": ("đeo {x}",),
    "backpack": ("đeo {x} sau lưng", "đeo {x}", "khoác {x} trên vai"),
    "shoulder bag": ("mang {x}",),
    "handbag": ("cầm {x}", "mang {x}"),
    "suitcase": ("kéo {x}", "kéo theo {x}"),
    "phone": ("nghe {x}", "đang nghe {x}"),
    "umbrella": ("cầm {x}",),
}
SUBJECTS: Final[Words] = {"man": ("người đàn ông",), "woman": ("người phụ nữ",), "": ("người",)}
LABELS: Final[Words] = {
    "man": ("nam", "người đàn ông"),
    "woman": ("nữ", "người phụ nữ"),
    "": ("người đi đường",),
}
PRONOUNS: Final[Words] = {"man": ("anh", "anh ấy"), "woman": ("cô", "cô ấy"), "": ("người này",)}
VIEWS: Final[Words] = {
    "front": ("nhìn từ phía trước", "nhìn từ chính diện"),
    "back": ("nhìn từ phía sau", "quay lưng về phía máy ảnh"),
    "left": ("nhìn từ một bên", "nhìn nghiêng"),
    "right": ("nhìn từ một bên", "nhìn nghiêng"),
}


def write_terse(said: Said, scene: Scene, rng: random.Random) -> str:
    """Returns fragments: ``Nam, tóc ngắn đen, áo thun đỏ kẻ ngang trắng, quần jean xanh dương, ba lô đen.``"""
    phrases = Phrases(said, LEXICON, rng)
    who = rng.choice(LABELS[said.get("gender", "")])
    view = [rng.choice(VIEWS[scene.view])] if scene.view else []
    verbs = rng.random() < 0.5
    clothes = phrases.upper() + phrases.thing("lower")
    head, shoes, carried = (
        _actions(things, rng) if verbs else [thing for _, thing in things] for things in _rest(phrases)
    )
    if rng.random() < 0.65:
        return sentence(
            ", ".join([f"{who} mặc {clothes[0]}", *clothes[1:], *shoes, *phrases.hair(), *head, *carried, *view])
        )
    return sentence(", ".join([who, *view, *phrases.hair(), *head, *clothes, *shoes, *carried]))


def write_flowing(said: Said, scene: Scene, rng: random.Random) -> str:
    """Returns one to three sentences."""
    phrases = Phrases(said, LEXICON, rng)
    gender = said.get("gender", "")
    hair = phrases.hair()
    head, shoes, carried = (_actions(things, rng) for things in _rest(phrases))
    who = f"một {rng.choice(SUBJECTS[gender])}"
    if hair and (said["hair"] == "shaved" or rng.random() < 0.4):
        who += " " + _owned(hair.pop(), ("có mái {}", "để {}", "{}"), rng)
    clothes = listed(phrases.upper() + phrases.thing("lower"), rng.choice(("và", "cùng", "với")))
    sentences = [_opening(who, clothes, scene, rng)]
    rest = [_owned(look, ("có mái {}", "để {}"), rng) for look in hair]
    rest += (head + shoes if rng.random() < 0.3 else shoes + head) + carried
    split = rng.randint(1, 3) if len(rest) > 3 else len(rest)
    for actions in (rest[:split], rest[split:]):
        if actions:
            sentences.append(f"{rng.choice(PRONOUNS[gender])} {listed(actions, 'và')}")
    return " ".join(sentence(text) for text in sentences)


def _rest(phrases: Phrases) -> tuple[list[Thing], list[Thing], list[Thing]]:
    """Returns what is worn on the head and neck, what on the feet, and what is carried."""
    head = [(part, thing) for part in ("headwear", "eyewear") for thing in phrases.thing(part)]
    head += [(part, thing) for part in ("mask", "scarf") for thing in phrases.cloth(part)]
    shoes = [("shoes", thing) for thing in phrases.thing("shoes")]
    parts = [(part, thing) for part in ("bag", "held") for thing in phrases.thing(part)]
    carried = [(phrases.said[part], f"{thing} {phrases.place(part)}".strip()) for part, thing in parts]
    return head, shoes, carried


def _actions(things: list[Thing], rng: random.Random) -> list[str]:
    return [rng.choice(VERBS[verb]).format(x=thing) for verb, thing in things]


def _owned(hair: str, forms: tuple[str, ...], rng: random.Random) -> str:
    return rng.choice(forms).format(hair) if hair.startswith("tóc") else hair


def _opening(who: str, clothes: str, scene: Scene, rng: random.Random) -> str:
    moving = ""
    if scene.walking is not None:
        moving = rng.choice(("đang đi bộ", "đang bước đi") if scene.walking else ("đang đứng", "đứng yên"))
    text = f"{who} {moving}, mặc {clothes}" if moving else f"{who} {rng.choice(('mặc', 'đang mặc'))} {clothes}"
    return f"{rng.choice(VIEWS[scene.view])}, {text}" if scene.view else text
