"""Each assumption about pynetdicom's inside by itself, so that an upgrade that breaks one says which."""

from __future__ import annotations

import inspect
import socket

import pytest
from pydicom._uid_dict import UID_dictionary
from pydicom.uid import UID
from pynetdicom import _config, fsm, sop_class
from pynetdicom.acse import ACSE
from pynetdicom.ae import ApplicationEntity
from pynetdicom.association import Association
from pynetdicom.pdu import A_ASSOCIATE_RQ
from pynetdicom.presentation import PresentationContext, negotiate_as_acceptor
from pynetdicom.transport import AssociationServer, RequestHandler, ThreadedAssociationServer

from storescp.network.listener import BACKLOG, bind
from support import scu
from support.instances import CT


def test_the_backlog_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(socket.socket, "listen", lambda _self, backlog=0: asked.append(backlog))
    bind("127.0.0.1", 0, "http.port").close()
    assert asked == [BACKLOG]


def test_storage_classes_are_private_tables_of_uids() -> None:
    for name in ("_STORAGE_CLASSES", "_NON_PATIENT_OBJECT_CLASSES", "_DEFINED_PROCEDURE_CLASSES",
                 "_PROTOCOL_APPROVAL_CLASSES", "_INVENTORY_CLASSES"):  # fmt: skip
        assert all(UID(uid).is_valid for uid in getattr(sop_class, name).values()), name
    assert UID_dictionary[CT][1] == "SOP Class"


def test_an_acceptor_context_may_have_no_transfer_syntax() -> None:
    ours = PresentationContext()
    ours.abstract_syntax = UID(CT)
    ours._transfer_syntax = []
    theirs = PresentationContext()
    theirs.context_id = 1
    theirs.abstract_syntax = UID(CT)
    theirs.transfer_syntax = [UID(scu.EXPLICIT)]
    [result], _ = negotiate_as_acceptor([theirs], [ours])
    assert result.result == 4


def test_a_request_decodes_to_a_primitive_without_threads() -> None:
    pdu = A_ASSOCIATE_RQ()
    pdu.decode(scu.associate_rq([(1, CT, [scu.EXPLICIT])], calling=b"CT1", called=b"ME"))
    primitive = pdu.to_primitive()
    assert (str(primitive.calling_ae_title).strip(), str(primitive.called_ae_title).strip()) == ("CT1", "ME")
    [context] = primitive.presentation_context_definition_list
    assert (context.context_id, context.abstract_syntax, context.transfer_syntax) == (1, CT, [scu.EXPLICIT])


def test_what_stands_between_socket_and_decoder_in_the_pure_engine_is_there() -> None:
    dul = Association(ApplicationEntity(), "acceptor").dul
    # Set on the object: both are looked up there each time.
    assert "self._decode_pdu(bytestream)" in inspect.getsource(dul._read_pdu_data)
    assert "self.socket.recv(6)" in inspect.getsource(dul._read_pdu_data)
    assert "pdu.encode()" in inspect.getsource(dul._send)
    assert "dul._send(" in inspect.getsource(fsm.AE_7)
    pdu, event = dul._decode_pdu(bytearray(scu.associate_rq([(1, CT, [scu.EXPLICIT])])))
    assert (type(pdu), event) == (A_ASSOCIATE_RQ, "Evt6")


def test_what_the_pure_listener_overrides_is_there() -> None:
    assert "_negotiate_as_acceptor" in vars(ACSE)
    assert "_create_association" in vars(RequestHandler)
    assert "deepcopy(self.server.contexts)" in inspect.getsource(RequestHandler._create_association)
    association = Association(ApplicationEntity(), "acceptor")
    assert isinstance(association.acse, ACSE)
    assert isinstance(association.dul.artim_timer.timeout, float | int)
    assert "dul.artim_timer.start()" in inspect.getsource(fsm.AE_5)
    assert "self.finish_request(" in inspect.getsource(ThreadedAssociationServer.process_request_thread)
    assert "from_tuple(self.client_address)" in inspect.getsource(RequestHandler.remote.fget)
    assert association._accepted_cx == {}
    assert association._rejected_cx == []
    assert hasattr(_config, "UNRESTRICTED_STORAGE_SERVICE")
    assert issubclass(ThreadedAssociationServer, AssociationServer)
