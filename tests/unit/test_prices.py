"""What calls cost: by where the provider is, out of a table on this machine."""

import subprocess
import sys
from datetime import UTC, datetime

import pytest
from genai_prices.data_snapshot import get_snapshot
from genai_prices.types import Usage

from inturn.provider_settings import ProviderSettings
from inturn.workers.prices import Prices, is_elsewhere

FREE = "meta-llama/llama-3.3-70b-instruct:free"
OPENAI, ANTHROPIC = "https://api.openai.com/v1", "https://api.anthropic.com"
PROVIDERS = {
    "openai": ProviderSettings.model_validate({"base_url": OPENAI, "models": {"fast": "gpt-5-mini"}}),
    "anthropic": ProviderSettings(type="anthropic", base_url=ANTHROPIC),
    "work": ProviderSettings.model_validate({"base_url": "https://openrouter.ai/api/v1", "models": {"free": FREE}}),
    "local": ProviderSettings(base_url="http://127.0.0.1:8000/v1"),
    "box": ProviderSettings(base_url="https://llm.example.org/v1"),
    "echo": ProviderSettings(type="echo"),
}  # fmt: skip


@pytest.fixture(scope="module")
def prices() -> Prices:
    return Prices(PROVIDERS)


def asked_of_the_table(model: str, url: str, **tokens: int) -> float:
    """What genai-prices itself makes of it."""
    provider, info = get_snapshot().find_provider_model(model, None, None, url)
    return float(info.calc_price(Usage(**tokens), provider, genai_request_timestamp=datetime.now(UTC)).total_price)


def test_a_call_costs_what_the_table_says(prices: Prices):
    found = prices.price("openai/gpt-5", 1_000_000, 100_000)
    assert found is not None
    assert found.usd == pytest.approx(1.25 + 1.0)
    assert found.table.startswith("genai-prices ")
    assert len(found.table) <= 60, "the column's length"


def test_tokens_of_a_cache_have_their_own_price(prices: Prices):
    plain, cached = prices.price("openai/gpt-5", 1000, 0), prices.price("openai/gpt-5", 1000, 0, 900)
    assert plain is not None
    assert cached is not None
    assert cached.usd == pytest.approx(asked_of_the_table("gpt-5", OPENAI, input_tokens=1000, cache_read_tokens=900))
    assert cached.usd < plain.usd
    written = prices.price("anthropic/claude-sonnet-4-5", 1000, 10, 200, 300)
    tokens = {"input_tokens": 1000, "output_tokens": 10, "cache_read_tokens": 200, "cache_write_tokens": 300}
    assert written is not None
    assert written.usd == pytest.approx(asked_of_the_table("claude-sonnet-4-5", ANTHROPIC, **tokens))


def test_more_of_a_cache_than_there_is_of_a_prompt_is_no_error(prices: Prices):
    assert prices.price("openai/gpt-5", 1000, 1, 5000, 700) == prices.price("openai/gpt-5", 1000, 1, 1000)


@pytest.mark.parametrize("tokens", [0, 1, 100_000, 100_001, 200_001, 5_000_000])
def test_all_models_of_the_table_cost_what_its_own_arithmetic_says(tokens: int):
    """Theirs takes 50 microseconds a call, ours one."""
    table, compared = get_snapshot(), 0
    urls = {"openai": OPENAI, "anthropic": ANTHROPIC, "google": "https://generativelanguage.googleapis.com/v1beta/openai",
            "deepseek": "https://api.deepseek.com", "perplexity": "https://api.perplexity.ai"}  # fmt: skip
    ours = Prices({name: ProviderSettings(base_url=url) for name, url in urls.items()})
    for name, url in urls.items():
        for info in table.find_provider(None, None, url).models:
            usage = {"input_tokens": tokens, "output_tokens": 77, "cache_read_tokens": tokens // 3}
            found = ours.price(f"{name}/{info.id}", tokens, 77, tokens // 3)
            if found is not None:
                compared += 1
                assert found.usd == pytest.approx(asked_of_the_table(info.id, url, **usage)), info.id
    assert compared > 100


def test_an_alias_costs_what_its_model_does(prices: Prices):
    assert prices.price("openai/fast", 1000, 100) == prices.price("openai/gpt-5-mini", 1000, 100) is not None


@pytest.mark.parametrize(
    "model", ["local/gpt-5", "box/gpt-5", "openai/no-such", "nobody/gpt-5", "openai/text-embedding-3-small"]
)
def test_what_is_not_in_the_table_has_no_price_and_is_not_free(prices: Prices, model: str):
    assert prices.price(model, 1000, 100) is None


def test_what_is_free_costs_nothing(prices: Prices):
    free, echo = prices.price("work/free", 1000, 100), prices.price("echo/echo", 1000, 100)
    assert free is not None
    assert echo is not None
    assert (free.usd, echo.usd, echo.table) == (0.0, 0.0, "echo")


def test_a_model_without_a_price_that_is_not_called_free_has_none():
    copilot = Prices({"copilot": ProviderSettings(base_url="https://api.githubcopilot.com")})
    assert copilot.context_tokens("copilot/gpt-4.1") is not None, "the table has it, without a price"
    assert copilot.price("copilot/gpt-4.1", 1000, 100) is None


def test_how_much_a_model_can_be_shown(prices: Prices):
    assert prices.context_tokens("openai/gpt-5") == 400_000
    assert [prices.context_tokens(model) for model in ("local/gpt-5", "echo/echo", "openai/no-such-model")] == [
        None
    ] * 3


@pytest.mark.parametrize(
    ("url", "elsewhere"),
    [
        (OPENAI, True),
        ("http://192.168.0.7:8000/v1", True),
        ("http://localhost:11434/v1", False),
        ("http://LOCALHOST/v1", False),
        ("http://api.localhost/v1", False),
        ("http://127.0.0.9/v1", False),
        ("http://[::1]:8000/v1", False),
        ("", False),
    ],
)
def test_which_providers_are_elsewhere(url: str, elsewhere: bool):
    assert is_elsewhere(ProviderSettings(base_url=url)) is elsewhere


@pytest.mark.parametrize(("url", "loaded"), [("http://localhost:8000/v1", False), (OPENAI, True)])
def test_the_table_is_read_only_where_a_provider_is_elsewhere(url: str, loaded: bool):
    program = (
        "import sys; from inturn.provider_settings import ProviderSettings; from inturn.workers.prices import Prices; "
        f"prices = Prices({{'p': ProviderSettings(base_url={url!r}), 'echo': ProviderSettings(type='echo')}}); "
        "assert 'genai_prices' not in sys.modules; prices.load(); prices.price('p/m', 1, 1); "
        "print('genai_prices' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(loaded)


def test_names_that_users_make_up_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("inturn.workers.prices.REMEMBERED", 10)
    prices = Prices(PROVIDERS)
    for number in range(50):
        assert prices.price(f"openai/made-up-{number}", 1, 1) is None
    assert len(prices._entries) <= 10
