"""What is relied on of Flower's inside: where it moves, a test here says so, and not a hospital."""

import inspect
from base64 import b64encode
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from fastapi import HTTPException
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.constant import Status
from flwr.proto.fleet_pb2 import ActivateNodeRequest
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.date import now
from flwr.supercore.inflatable import inflatable_utils
from flwr.supercore.inflatable.inflatable_object import get_object_tree
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message
from flwr.supercore.run import Run, RunNotRunningException
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink import extensions, main
from flwr.superlink.routers.fleet.node_auth import authenticate_node
from flwr.supernode import start_client_internal
from flwr.supernode.nodestate.nodestate_factory import NodeStateFactory
from flwr.supernode.runtime import run_clientapp

from medx.site.flower import NO_MESSAGE, SOON, forgotten_where_its_run_ended, look_again_soon


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


@pytest.mark.parametrize(
    ("ahead", "taken"), [(0, True), (4, True), (6, False), (3600, False), (-304, True), (-3600, False)]
)
def test_a_node_whose_clock_is_apart_is_refused(ahead: float, taken: bool) -> None:
    """By its signed time, before anything else of the request is looked at: no message ever reaches it."""
    key = ec.generate_private_key(ec.SECP384R1())
    public, stamp = public_key_to_bytes(key.public_key()), (now() + timedelta(seconds=ahead)).isoformat()
    headers = {
        FLEET_HTTP_PUBLIC_KEY_HEADER: b64encode(public).decode(),
        FLEET_HTTP_SIGNATURE_HEADER: b64encode(sign_message(key, stamp.encode())).decode(),
        "flwr-timestamp": stamp,
    }
    asked = SimpleNamespace(protobuf_request=ActivateNodeRequest(public_key=public))
    request = cast(Any, SimpleNamespace(headers=headers, state=asked))
    if taken:
        authenticate_node(request)
        return
    with pytest.raises(HTTPException) as refused:
        authenticate_node(request)
    assert refused.value.status_code == 401


@pytest.mark.parametrize("mended", [False, True])
def test_a_message_whose_run_ends_while_it_arrives_is_forgotten(mended: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Left alone, Flower's node hands an executor the message without its parts, which never come."""
    stores = ObjectStoreFactory()
    store, state = stores.store(), NodeStateFactory(stores).state()
    state.set_node_id(1)
    state.store_run(Run.create_empty(7))
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 7)
    message = Message(RecordDict({"words": ConfigRecord({"n": 1})}), dst_node_id=1, message_type="train")
    message.metadata.__dict__["_message_id"] = message.object_id
    tree = get_object_tree(message)

    def ended(*_: object) -> bytes:
        raise RunNotRunningException

    if mended:
        pull = forgotten_where_its_run_ended(start_client_internal.pull_objects)
        monkeypatch.setattr(start_client_internal, "pull_objects", pull)
    call = start_client_internal._pull_and_store_message
    given: dict[str, Any] = {name: ended for name in inspect.signature(call).parameters}
    own = {"state": state, "object_store": store, "node_config": {}, "trusted_entities": None}
    assert call(**(given | own | {"receive": lambda: (message, tree)})) is None
    waiting = [task for task in state.get_tasks() if task.status.status == Status.PENDING]
    assert len(waiting) == (0 if mended else 1)
    assert len(state.get_messages_legacy(is_reply=False)) == (0 if mended else 1)
