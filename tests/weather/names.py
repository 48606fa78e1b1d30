"""A name server that can go bad: it knows one name, and where that leads."""

import random
import socket
import struct
import threading
from enum import Enum

NAME = "artifactory.test"  # a domain that nobody owns (RFC 6761)
_PORT = 53  # the resolver of the C library asks no other
_HEADER = struct.Struct("!HHHHHH")
_ANSWER = struct.Struct("!HHHIH4s")
_SAME_NAME = 0xC00C  # as in the question (RFC 1035 section 4.1.4)
_A, _IN = 1, 1
_TRIES = 10
_IS_ANSWER = 0x8180  # recursion is wanted, and to be had


class Knows(Enum):
    """What becomes of questions. Values are response codes."""

    NAME = 0
    NOTHING = 3  # NXDOMAIN
    FAILS = 2  # SERVFAIL
    SILENT = None


class NameServer:
    """Answers by UDP, on a loopback address of its own. A context manager.

    Attributes:
        knows: may be changed by any thread.
        leads_to: the IPv4 address of the name.
    """

    def __init__(self, leads_to: str) -> None:
        self.knows = Knows.NAME
        self.leads_to = leads_to
        self._socket, self.address = _bound()
        self._ended = False
        self._thread = threading.Thread(target=self._answer, name="names", daemon=True)

    def __enter__(self) -> "NameServer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        self._socket.sendto(b"", self._socket.getsockname())
        self._thread.join()
        self._socket.close()

    @property
    def resolv_conf(self) -> str:
        """What makes the C library ask it, and nobody else, once."""
        return f"nameserver {self.address}\nsearch .\noptions timeout:1 attempts:1\n"

    def _answer(self) -> None:
        while not self._ended:
            question, asker = self._socket.recvfrom(512)
            if len(question) > _HEADER.size and self.knows is not Knows.SILENT:
                self._socket.sendto(self._answer_to(question), asker)

    def _answer_to(self, question: bytes) -> bytes:
        number = _HEADER.unpack_from(question)[0]
        name, rest = _name_in(question[_HEADER.size :])
        kind = struct.unpack_from("!H", rest)[0]
        asked = question[_HEADER.size : len(question) - len(rest) + 4]
        knows = self.knows if name == NAME else Knows.NOTHING
        answers = b""
        if knows is Knows.NAME and kind == _A:
            place = socket.inet_aton(self.leads_to)
            answers = _ANSWER.pack(_SAME_NAME, _A, _IN, 0, len(place), place)
        flags = _IS_ANSWER | (knows.value or 0)
        return _HEADER.pack(number, flags, 1, int(bool(answers)), 0, 0) + asked + answers


def _bound() -> tuple[socket.socket, str]:
    """Return a socket of an address that neither tests beside this one nor a resolver have."""
    for _ in range(_TRIES):
        address = f"127.{random.randint(1, 254)}.{random.randint(1, 254)}.{random.randint(2, 254)}"
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            sock.bind((address, _PORT))
        except OSError as error:
            sock.close()
            failure = error
            continue
        return sock, address
    raise failure


def _name_in(text: bytes) -> tuple[str, bytes]:
    """Return the name at the beginning, and what follows it."""
    labels = []
    while text[0]:
        labels.append(text[1 : 1 + text[0]].decode("ascii", "replace"))
        text = text[1 + text[0] :]
    return ".".join(labels).lower(), text[1:]
