"""The engine without a runtime, and pyrunc's daemon on a fake one, as tests/engine has them."""

from tests.engine import conftest as engine

thread, world, served, own, caller = engine.thread, engine.world, engine.served, engine.own, engine.caller
