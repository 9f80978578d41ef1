import pytest
from jaxtyping import config


@pytest.fixture(scope="module")
def types_as_users_have_them():
    """Without the checks of the test suite, which see a value of the wrong type before the record does."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)
