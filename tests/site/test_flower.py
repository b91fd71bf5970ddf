"""What is relied on of Flower's inside: where it moves, a test here says so, and not a hospital."""

import inspect

from flwr.supercore.inflatable import inflatable_utils
from flwr.superlink import extensions, main
from flwr.supernode import start_client_internal
from flwr.supernode.runtime import run_clientapp

from medx.site.flower import NO_MESSAGE, SOON, look_again_soon


def test_the_node_sleeps_where_it_is_replaced() -> None:
    source = inspect.getsource(start_client_internal)
    assert f"time.sleep({NO_MESSAGE})" in source
    assert "time.sleep(0.5)" in source
    assert "import time" in source


def test_parts_of_messages_are_looked_for_as_configured() -> None:
    look_again_soon()
    for pull in (inflatable_utils.pull_objects, inflatable_utils.pull_and_inflate_object_from_tree):
        assert pull.__kwdefaults__["initial_backoff"] == SOON


def test_the_door_stands_before_all_else() -> None:
    assert "*extensions.get_middleware()," in inspect.getsource(main._get_middleware)
    assert extensions.get_middleware() == ()


def test_a_message_is_pulled_and_its_bundle_is_unpacked_elsewhere() -> None:
    assert "install_from_fab" not in inspect.getsource(run_clientapp.pull_task_input)
    for name in ("pull_task_input", "push_message", "push_task_output"):
        assert callable(getattr(run_clientapp, name))
