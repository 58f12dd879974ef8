import pytest

from utils.config.resolvers import parse_size
from utils.errors import UserError


@pytest.mark.parametrize("text", ["(384,128)", "384x128", "384,128", " ( 384 , 128 ) ", "'(384,128)'"])
def test_every_spelling_of_a_size(text: str) -> None:
    assert parse_size(text) == [384, 128]


@pytest.mark.parametrize("text", ["384", "384x", "0x128", "axb", "(384,128,3)", "-1x5", "__import__('os')"])
def test_what_is_no_size_is_one_sentence(text: str) -> None:
    with pytest.raises(UserError, match=r"img_size_str: .* is not a size; write height and width as \(384,128\)"):
        parse_size(text)
