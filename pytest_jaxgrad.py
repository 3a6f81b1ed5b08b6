"""The option `--jaxgrad` of pytest, which audits every derivative rule that a test suite executes.

This module is no part of the package, which imports JAX: a suite may set JAX up before it is
imported.
"""


def pytest_addoption(parser):
    """Add the option."""
    parser.getgroup("jaxgrad").addoption(
        "--jaxgrad",
        action="store_true",
        help="check each function with a derivative rule of JAX that the tests call",
    )


def pytest_configure(config):
    """Begin to record calls, if the option is there."""
    if config.getoption("jaxgrad"):
        from jaxgrad._pytest_audit import hooks

        config.pluginmanager.register(hooks(config), "jaxgrad-audit")
