"""What is accepted: abstract syntaxes and transfer syntaxes, built once."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pydicom._uid_dict import UID_dictionary
from pynetdicom import ALL_TRANSFER_SYNTAXES, sop_class

from storescp import _core
from storescp.names import name_of
from storescp.settings import Settings

VERIFICATION = "1.2.840.10008.1.1"
NATIVE_TRANSFER_SYNTAXES = frozenset({"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"})
# PS3.6 Table A-1 has them; dictionaries lag behind.
_RECENT_TRANSFER_SYNTAXES = frozenset(
    {
        "1.2.840.10008.1.2.4.110",
        "1.2.840.10008.1.2.4.111",
        "1.2.840.10008.1.2.4.112",
        "1.2.840.10008.1.2.8.1",
    }
)
# MIME, XML, SMPTE ST 2110 and Papyrus are no encodings of a C-STORE data set.
_NOT_FOR_STORAGE = ("1.2.840.10008.1.2.6.", "1.2.840.10008.1.2.7.")
_PAPYRUS = "1.2.840.10008.1.20"
_STORAGE_ROOTS = ("1.2.840.10008.5.1.4.1.1.", "1.2.840.10008.5.1.4.34.")


def storage_sop_classes() -> frozenset[str]:
    """Every SOP class of the Storage Service Class that pynetdicom or the dictionary knows, retired ones too.

    Non-patient objects (hanging protocols, inventories ...) belong to another service class (PS3.4 Annex GG).
    """
    known = {str(uid) for uid in sop_class._STORAGE_CLASSES.values()}  # noqa: SLF001 - tested in test_seams
    other_services = {
        str(uid)
        for name in (
            "_NON_PATIENT_OBJECT_CLASSES",
            "_DEFINED_PROCEDURE_CLASSES",
            "_PROTOCOL_APPROVAL_CLASSES",
            "_INVENTORY_CLASSES",
        )
        for uid in getattr(sop_class, name).values()
    }
    named = {
        uid
        for uid, (name, kind, *_) in UID_dictionary.items()
        if kind == "SOP Class" and "Storage" in name and uid.startswith(_STORAGE_ROOTS)
    }
    return frozenset(known | (named - other_services))


def storage_class_name(uid: str) -> str:
    """The name of a storage SOP class; those that the dictionary does not have yet by their keyword."""
    keywords = {str(known): keyword for keyword, known in sop_class._STORAGE_CLASSES.items()}  # noqa: SLF001
    return name_of(uid) or re.sub(r"(?<=[a-z])(?=[A-Z])", " ", keywords.get(uid, uid))


def known_transfer_syntaxes() -> frozenset[str]:
    """Every transfer syntax that a C-STORE can have, of all dictionaries."""
    named = {uid for uid, (_, kind, *_) in UID_dictionary.items() if kind == "Transfer Syntax"}
    named |= {str(uid) for uid in ALL_TRANSFER_SYNTAXES} | _RECENT_TRANSFER_SYNTAXES
    named |= {uid for uid, *_ in _core.transfer_syntaxes()}
    return frozenset(uid for uid in named if not uid.startswith(_NOT_FOR_STORAGE) and uid != _PAPYRUS)


@dataclass(frozen=True)
class Offer:
    """What negotiation may accept."""

    storage_sop_classes: frozenset[str]
    transfer_syntaxes: frozenset[str]
    promiscuous: bool

    @classmethod
    def from_settings(cls, settings: Settings) -> Offer:
        """The offer of a configuration."""
        scp = settings.dicom_store_scp
        if scp.uncompressed_only:
            syntaxes = NATIVE_TRANSFER_SYNTAXES
        else:
            syntaxes = known_transfer_syntaxes() | set(settings.transcoding.viewer_transfer_syntaxes)
        return cls(storage_sop_classes(), frozenset(syntaxes), scp.promiscuous)

    def accepts(self, abstract_syntax: str) -> bool:
        """Whether instances of this class (or C-ECHO) are taken."""
        if abstract_syntax == VERIFICATION or abstract_syntax in self.storage_sop_classes:
            return True
        # Never a known class that is not storage.
        return self.promiscuous and abstract_syntax not in UID_dictionary
