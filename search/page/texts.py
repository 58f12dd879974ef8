"""The texts of the page, in Vietnamese and English."""

from collections.abc import Mapping
from typing import Final

Texts = Mapping[str, str]

TEXTS: Final[Mapping[str, Texts]] = {
    "en": {
        "title": "Search images",
        "other": "Tiếng Việt",
        "sentence": "Describe a person",
        "example": "a man in a red coat",
        "search": "Search",
        "picture": "Search by picture",
        "folder": "Folder",
        "all": "All folders ({n})",
        "start": "Type a sentence to see images.",
        "searching": "Searching …",
        "found": "{n} images in {ms} ms",
        "none": "There is no image in this folder.",
        "like": "More like this",
        "like_of": "Images like",
        "back": "Back to the sentence",
        "original": "Open the original",
        "select": "Select",
        "selected": "{n} selected",
        "zip": "Save ZIP",
        "csv": "Save CSV",
        "unselect": "Clear",
        "more": "Show more",
        "score": "score",
        "help": "Keys: / sentence · arrows move · Enter original · Space select · M more like this · Esc back",
        "gone": "This image is not in the index any more; search again.",
        "large": "This picture has too many bytes.",
        "unreadable": "This file cannot be read as a picture; choose a JPEG or PNG file.",
        "failed": "The server does not answer. Is it still running?",
    },
    "vi": {
        "title": "Tìm kiếm ảnh",
        "other": "English",
        "sentence": "Mô tả một người",
        "example": "một người đàn ông mặc áo đỏ",
        "search": "Tìm",
        "picture": "Tìm bằng ảnh",
        "folder": "Thư mục",
        "all": "Mọi thư mục ({n})",
        "start": "Gõ một câu để xem ảnh.",
        "searching": "Đang tìm …",
        "found": "{n} ảnh trong {ms} ms",
        "none": "Thư mục này không có ảnh nào.",
        "like": "Ảnh tương tự",
        "like_of": "Ảnh giống với",
        "back": "Quay lại câu mô tả",
        "original": "Mở ảnh gốc",
        "select": "Chọn",
        "selected": "Đã chọn {n}",
        "zip": "Lưu ZIP",
        "csv": "Lưu CSV",
        "unselect": "Bỏ chọn",
        "more": "Xem thêm",
        "score": "điểm",
        "help": "Phím: / câu mô tả · mũi tên di chuyển · Enter ảnh gốc · Space chọn · M ảnh tương tự · Esc quay lại",
        "gone": "Ảnh này không còn trong chỉ mục; hãy tìm lại.",
        "large": "Ảnh này quá nhiều byte.",
        "unreadable": "Không đọc được tệp này; hãy chọn tệp JPEG hoặc PNG.",
        "failed": "Máy chủ không trả lời. Máy chủ còn chạy không?",
    },
}


def language_of(asked: str | None, accepted: str) -> str:
    """Returns "vi" or "en": the language that the address asks for, else the first that the browser accepts."""
    if asked in TEXTS:
        return str(asked)
    codes = (part.strip()[:2].lower() for part in accepted.split(","))
    return next((code for code in codes if code in TEXTS), "en")
