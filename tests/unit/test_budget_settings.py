"""Settings of budgets: a webhook has a secret, which is nowhere but in the environment or in a file of its own."""

import pytest

from proxy.core.pricing import Unpriced
from proxy.settings import SettingsError, load

URL = "https://hooks.internal/token-in-the-path"
SECRET = "a-shared-secret-0123456789"


def file_of(tmp_path, text):
    path = tmp_path / "tollgate.toml"
    path.write_text(text)
    return path


def refused(tmp_path, text, environ):
    with pytest.raises(SettingsError) as caught:
        load(file_of(tmp_path, text), environ)
    assert "token-in-the-path" not in str(caught.value)
    assert SECRET not in str(caught.value)
    return str(caught.value)


def test_nobody_is_told_and_models_without_a_price_are_refused_by_default():
    settings = load(None, {})
    assert (settings.budgets.webhook_url, settings.prices.unpriced) == (None, Unpriced.REFUSE)
    assert load(None, {"TOLLGATE_PRICES_UNPRICED": "allow"}).prices.unpriced is Unpriced.ALLOW


def test_the_secret_is_in_a_file_or_in_the_environment_which_wins(tmp_path):
    (tmp_path / "webhook.secret").write_text("from-the-file\n")
    file = file_of(tmp_path, f'[budgets]\nwebhook_url = "{URL}"\nwebhook_secret_file = "webhook.secret"')
    assert load(file, {}).budgets.webhook_secret.reveal() == "from-the-file"
    given = load(file, {"TOLLGATE_BUDGETS_WEBHOOK_SECRET": SECRET})
    assert given.budgets.webhook_secret.reveal() == SECRET
    assert given.budgets.webhook_url.reveal() == URL
    assert SECRET not in repr(given)
    assert "token-in-the-path" not in repr(given)


@pytest.mark.parametrize(
    ("text", "environ", "said"),
    [
        (f'[budgets]\nwebhook_url = "{URL}"', {}, "with a secret that is missing"),
        ('[budgets]\nwebhook_url = "ftp://token-in-the-path"', {"TOLLGATE_BUDGETS_WEBHOOK_SECRET": SECRET}, "http://"),
        ('[budgets]\nwebhook_url = "https://:99"', {"TOLLGATE_BUDGETS_WEBHOOK_SECRET": SECRET}, "http://"),
        (f'[budgets]\nwebhook_secret = "{SECRET}"', {}, "TOLLGATE_BUDGETS_WEBHOOK_SECRET"),
        ('[budgets]\nwebhook_secret_file = "absent"', {}, "cannot read the file"),
    ],
)
def test_what_would_not_work_is_refused_and_nothing_of_it_quoted(tmp_path, text, environ, said):
    assert said in refused(tmp_path, text, environ)
