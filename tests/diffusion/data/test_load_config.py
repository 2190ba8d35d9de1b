import pytest

from diffusion.data.loader import LoadConfig


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decode_threads": 0}, "decode_threads must be at least 1, got 0"),
        ({"read_threads": 0}, "read_threads must be at least 1, got 0"),
        ({"ahead_bytes": -1}, "ahead_bytes must be at least 0, got -1"),
        ({"keep_bytes": -1}, "keep_bytes must be at least 0, got -1"),
        ({"block_cache_bytes": -1}, "block_cache_bytes must be at least 0, got -1"),
        ({"keep_decoded": "yes"}, "keep_decoded must be one of auto, on, off, got 'yes'"),
    ],
)
def test_an_impossible_setting_is_refused_with_its_key_and_value(options, message):
    with pytest.raises(ValueError, match=message):
        LoadConfig(**options)
