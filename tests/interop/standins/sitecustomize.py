"""Stands in for opentelemetry-semantic-conventions, which some package mirrors lack: the names of W&B's telemetry, which
is off in the tests. Python imports this by itself when its directory is in PYTHONPATH; the real package goes first."""
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

PACKAGE = "opentelemetry.semconv"


class Name(str):
    """A constant, a class of constants, or a function that makes a metric."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Name(name)

    def __call__(self, *_, **__):
        return None


class Constants(ModuleType):
    def __getattr__(self, name):
        return getattr(Name(), name)


class Finder:
    def find_spec(self, name, path=None, target=None):
        return ModuleSpec(name, self, is_package=True) if f"{name}.".startswith(f"{PACKAGE}.") else None

    def create_module(self, spec):
        return Constants(spec.name)

    def exec_module(self, module):
        pass


sys.meta_path.append(Finder())
